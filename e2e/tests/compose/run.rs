//! Starts the services of a compose file on this machine.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testkit::api::{Api, App};
use testkit::client::{Client, Options};
use testkit::postgres::{Postgres, Version};
use testkit::process::{self, ZeroCache};
use testkit::s3;

use super::file::{File, Service};
use crate::app::query;

const READY: Duration = Duration::from_secs(60);

/// What the container network would resolve: `host:port` inside to a port of this machine.
type Network = BTreeMap<String, u16>;

/// Every service started in the order of its dependencies; a row written upstream arrives at a client of the entrance.
pub async fn syncs_a_row(file: &File) -> Result<()> {
    let postgres = Postgres::start(Version::V15)?;
    let settings = &file.services["upstream-db"].environment;
    let database = settings.get("POSTGRES_DB").context("upstream-db names its database")?;
    postgres.connect("postgres").await?.batch_execute(&format!("CREATE DATABASE {database}")).await?;
    let upstream = postgres.connect(database).await?;
    upstream.batch_execute("CREATE TABLE note (id text PRIMARY KEY, text text NOT NULL)").await?;
    let api = Api::start(App::default().query("any", |args| Ok(args[0].clone()))).await?;

    let mut network = Network::from([("upstream-db:5432".to_owned(), postgres.port())]);
    network.insert("host.docker.internal:3000".to_owned(), port_of(&api.query_url())?);
    let mut secrets = BTreeMap::new();
    let store = match file.services.get("object-store") {
        None => None,
        Some(service) => {
            let (bucket, port) = bucket(service)?;
            let store = s3::S3::start(&bucket).await?;
            network.insert(format!("object-store:{port}"), port_of(&store.endpoint())?);
            // The test's store has keys of its own; nodes must know those of the file's.
            secrets.insert("AWS_ACCESS_KEY_ID", (&service.environment["ROOT_ACCESS_KEY_ID"], s3::ACCESS_KEY));
            secrets.insert("AWS_SECRET_ACCESS_KEY", (&service.environment["ROOT_SECRET_ACCESS_KEY"], s3::SECRET_KEY));
            Some(store)
        }
    };

    let mut running: Vec<(&str, ZeroCache)> = Vec::new();
    let is_running = |running: &[(&str, ZeroCache)], name: &str| running.iter().any(|(other, _)| *other == name);
    let nodes: Vec<_> = file.services.iter().filter(|(_, service)| service.is_zero_cache()).collect();
    while running.len() < nodes.len() {
        let is_due = |name: &str, service: &Service| {
            let ours = service.depends_on.keys().filter(|other| file.services[*other].is_zero_cache());
            !is_running(&running, name) && ours.into_iter().all(|other| is_running(&running, other))
        };
        let (name, service) = nodes
            .iter()
            .find(|(name, service)| is_due(name, service))
            .context("services wait for each other in a circle")?;
        let mut node = ZeroCache::new("")?.named(name);
        let environment = translate(service, &network, &secrets, &node)?;
        let port = node.port();
        node = node.with_environment(environment, port);
        node.start()?;
        for inside in ["4848", "4849"] {
            let outside = if inside == "4848" { port } else { node.change_port() };
            network.insert(format!("{name}:{inside}"), outside);
        }
        probe(name, service, &network)?;
        running.push((name, node));
    }

    let schema = json!({"tables": {"note": {"columns": {"id": {"type": "string"}, "text": {"type": "string"}}, "primaryKey": ["id"]}}});
    let entrance = super::entrance(file)?;
    let port = network[&format!("{entrance}:4848")];
    let client = Client::start(Options::new(port, schema), &[query(json!({"table": "note"}))]).await?;
    upstream.batch_execute("INSERT INTO note VALUES ('n1', 'composed')").await?;
    let arrived = client.wait_for("the row", |store| {
        store.rows.get("note").and_then(|rows| rows.get("[\"n1\"]")).is_some_and(|row| row["text"] == "composed")
    });
    arrived.await?;
    // The last one started is the first to go.
    for (_, node) in running.iter_mut().rev() {
        let status = node.terminate()?;
        ensure!(status.success(), "{} ended with {status}:\n{}", node.name(), node.log_tail(20));
        node.check_log()?;
    }
    drop(store);
    Ok(())
}

/// The service's environment as it is on this machine.
fn translate(
    service: &Service,
    network: &Network,
    secrets: &BTreeMap<&str, (&String, &str)>,
    node: &ZeroCache,
) -> Result<Vec<(String, String)>> {
    let mut environment = Vec::new();
    for (name, value) in &service.environment {
        let mut value = value.clone();
        for (inside, outside) in network {
            value = value.replace(inside, &format!("127.0.0.1:{outside}"));
        }
        if name == "ZERO_REPLICA_FILE" {
            value = node.replica_file().display().to_string();
        }
        if let Some((known, own)) = secrets.get(name.as_str()) {
            ensure!(value == **known, "{name} is not what the object store accepts");
            value = (*own).to_owned();
        }
        environment.push((name.clone(), value));
    }
    // In a container the usual port is free.
    ensure!(!service.environment.contains_key("ZERO_PORT"), "containers keep the usual port");
    environment.push(("ZERO_PORT".to_owned(), node.port().to_string()));
    Ok(environment)
}

/// The file's own health check must succeed: the same command, with the port of this machine.
fn probe(name: &str, service: &Service, network: &Network) -> Result<()> {
    let check = service.healthcheck.as_ref().context("a service has a health check")?;
    let (port, path) = check.url()?;
    let (inside, outside) = (format!(":{port}/"), format!(":{}/", network[&format!("{name}:{port}")]));
    let arguments: Vec<String> = check.arguments()?.iter().map(|word| word.replace(&inside, &outside)).collect();
    let binary = process::binary()?;
    let deadline = std::time::Instant::now() + READY;
    while !Command::new(&binary).args(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success() {
        ensure!(std::time::Instant::now() < deadline, "{name} is not healthy at {path}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The bucket that the store makes, and its port.
fn bucket(service: &Service) -> Result<(String, u16)> {
    let command = service.entrypoint.last().context("the object store makes its bucket")?;
    let after = |mark: &str| command.split(mark).nth(1).and_then(|rest| rest.split([' ', '&']).next());
    let bucket = after("mkdir -p /data/").context("the object store makes a bucket below /data")?;
    let port = after("--port :").context("the object store listens on a port")?;
    ensure!(service.expose == [port], "the object store listens on {port} and exposes {:?}", service.expose);
    Ok((bucket.to_owned(), port.parse()?))
}

fn port_of(url: &str) -> Result<u16> {
    let authority = url.split("://").nth(1).and_then(|rest| rest.split('/').next());
    authority
        .and_then(|authority| authority.rsplit(':').next()?.parse().ok())
        .with_context(|| format!("no port in {url}"))
}
