//! The compose files in `examples/compose`: they keep the rules of a deployment, and the processes started with exactly their
//! environment sync a row to a client. Only what a container network gives is replaced: host names, ports, paths.

mod file;
mod run;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use self::file::{File, Service};

const CHANGE_STREAM: u16 = 4849;
const FILES: [&str; 2] = ["single-node.yaml", "multi-node.yaml"];

#[test]
fn the_change_stream_is_exposed_and_never_published() -> Result<()> {
    for name in FILES {
        let file = File::read(name)?;
        for (service, found) in &file.services {
            for port in &found.ports {
                let inside = file::container_port(port)?;
                ensure!(inside != CHANGE_STREAM, "{name}: {service} publishes {port}");
                // Databases are for this machine, clients' ports for everybody.
                ensure!(
                    inside == 4848 || port.starts_with("127.0.0.1:"),
                    "{name}: {service} publishes {port} to everybody"
                );
            }
            let is_manager = found.environment.get("ZERO_NUM_SYNC_WORKERS").is_some_and(|count| count == "0");
            let is_exposed = found.expose.iter().any(|port| port == "4849");
            ensure!(is_exposed == is_manager, "{name}: {service} exposes {:?}", found.expose);
        }
    }
    Ok(())
}

#[test]
fn every_service_is_probed_restarted_and_given_time_to_end() -> Result<()> {
    for name in FILES {
        let file = File::read(name)?;
        for (service, found) in &file.services {
            let probe = found.healthcheck.as_ref().with_context(|| format!("{name}: {service} has no health check"))?;
            ensure!(probe.test.len() > 1 && probe.test[0] == "CMD", "{name}: {service} is probed by {:?}", probe.test);
            ensure!(probe.start_period.is_some(), "{name}: {service} has no time to start");
            ensure!(found.restart.as_deref() == Some("unless-stopped"), "{name}: {service} is not restarted");
            if found.is_zero_cache() {
                ensure!(found.stop_grace_period.as_deref() == Some("10m"), "{name}: {service} has no time to drain");
                ensure!(
                    probe.start_period.as_deref() == Some("10m"),
                    "{name}: {service} has no time to copy a database"
                );
                let (port, path) = probe.url()?;
                let own = if found.expose.is_empty() { 4848 } else { CHANGE_STREAM };
                ensure!((port, path.as_str()) == (own, "/keepalive"), "{name}: {service} is probed at {port} {path}");
            }
        }
    }
    Ok(())
}

#[test]
fn the_parts_fit_each_other() -> Result<()> {
    for name in FILES {
        let file = File::read(name)?;
        let upstream = &file.services["upstream-db"];
        ensure!(upstream.command.iter().any(|word| word == "wal_level=logical"), "{name}: no logical replication");
        let nodes: Vec<_> = file.services.iter().filter(|(_, service)| service.is_zero_cache()).collect();
        ensure!(!nodes.is_empty());
        let of = |variable: &str| -> BTreeSet<_> {
            nodes.iter().map(|(_, node)| node.environment.get(variable).cloned()).collect()
        };
        for variable in ["ZERO_UPSTREAM_DB", "ZERO_CVR_DB", "ZERO_CHANGE_DB", "ZERO_ADMIN_PASSWORD"] {
            let values = of(variable);
            ensure!(values.len() == 1 && !values.contains(&None), "{name}: {variable} differs between nodes");
        }
        for (service, node) in &nodes {
            for variable in node.environment.keys() {
                ensure!(
                    variable.starts_with("ZERO_") || variable.starts_with("AWS_"),
                    "{name}: {service} sets {variable}"
                );
            }
            for host in node.hosts() {
                let is_known =
                    file.services.contains_key(&host) || node.extra_hosts.iter().any(|h| h.starts_with(&host));
                ensure!(is_known, "{name}: {service} refers to {host}, which is not there");
            }
            for other in node.depends_on.keys() {
                ensure!(file.services.contains_key(other), "{name}: {service} waits for {other}, which is not there");
                ensure!(
                    node.depends_on[other].condition == "service_healthy",
                    "{name}: {service} does not wait for {other}"
                );
            }
            for volume in &node.volumes {
                let (volume, _) = volume.split_once(':').context("a volume has a place")?;
                ensure!(file.volumes.contains_key(volume), "{name}: {service} mounts {volume}, which is not there");
            }
        }
        let backed_up = nodes.iter().filter(|(_, node)| node.environment.contains_key("ZERO_LITESTREAM_BACKUP_URL"));
        let backed_up: Vec<_> = backed_up.map(|(service, _)| service.as_str()).collect();
        let expected: &[&str] = if nodes.len() > 1 { &["replication-manager"] } else { &[] };
        ensure!(backed_up == expected, "{name}: {backed_up:?} write backups");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_single_node_syncs_a_row() -> Result<()> {
    run::syncs_a_row(&File::read("single-node.yaml")?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_sync_a_row() -> Result<()> {
    run::syncs_a_row(&File::read("multi-node.yaml")?).await
}

/// The service that clients connect to.
fn entrance(file: &File) -> Result<&str> {
    let is_entrance = |service: &Service| service.is_zero_cache() && !service.ports.is_empty();
    let mut found = file.services.iter().filter(|(_, service)| is_entrance(service));
    let (name, _) = found.next().context("no service is published to clients")?;
    ensure!(found.next().is_none(), "two services are published to clients");
    Ok(name)
}
