//! One test's application: a namespace, a database, an API server, and a ZeroCache that is asked for like by a person.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};
use testkit::api::Api;
use testkit::client::{Client, Options, Query};
use testkit::postgres::Database;
use testkit::s3;

use crate::app::{ROWS_SQL, TABLES_SQL, app, client_schema};
use crate::ground::{BUCKET, Ground, NODE, OLD, operator_log};
use crate::kubectl::{apply, get, kubectl, list};

/// Name of every test's ZeroCache.
pub const NAME: &str = "app";
/// How long a deployment may take to serve, or to come back, on a busy machine of two cores.
pub const READY: Duration = Duration::from_secs(150);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(300);

pub const MANAGER: &str = "app.kubernetes.io/name=zero-cache,app.kubernetes.io/component=replication-manager";
pub const SYNCER: &str = "app.kubernetes.io/name=zero-cache,app.kubernetes.io/component=view-syncer";

pub struct Site {
    pub ground: &'static Ground,
    pub namespace: String,
    pub database: Database<'static>,
    /// Lives as long as the test.
    _api: Option<Api>,
    api_port: u16,
}

impl Site {
    /// A namespace with the Secrets, and a database with tables and rows. No ZeroCache yet.
    pub async fn prepare(test: &str) -> Result<Site> {
        Self::prepare_with(test, &format!("{TABLES_SQL}{ROWS_SQL}")).await
    }

    pub async fn prepare_with(test: &str, sql: &str) -> Result<Site> {
        let ground = Ground::get().await?;
        let database = ground.postgres.create_database(&test.replace('-', "_")).await?;
        database.execute(sql).await?;
        let api = Api::start_at(app(&database.url()), NODE).await?;
        let site = Self::prepare_on(test, database, api.port()).await?;
        Ok(Site { _api: Some(api), ..site })
    }

    /// For a database and an API server that are there.
    pub async fn prepare_on(test: &str, database: Database<'static>, api_port: u16) -> Result<Site> {
        let ground = Ground::get().await?;
        let namespace = test.to_owned();
        kubectl(&["create", "namespace", &namespace]).await?;
        let site = Site { ground, namespace, database, _api: None, api_port };
        site.put_secret("admin", &json!({"password": "admin-password"})).await?;
        site.set_password("first-password").await?;
        site.put_secret("store", &json!({"id": s3::ACCESS_KEY, "key": s3::SECRET_KEY})).await?;
        Ok(site)
    }

    /// The same, with a ZeroCache that serves.
    pub async fn start(test: &str, change: impl FnOnce(&mut Value)) -> Result<Site> {
        let site = Self::prepare(test).await?;
        let started = site.start_cache(change).await;
        site.explain(started).await?;
        Ok(site)
    }

    async fn start_cache(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut cache = self.cache();
        change(&mut cache);
        apply(&cache).await?;
        self.ready().await.map(drop)
    }

    /// The pods' role and its password, in Postgres and in the Secret.
    pub async fn set_password(&self, password: &str) -> Result<()> {
        let (role, port) = (&self.database.name, self.ground.postgres.port());
        let change =
            format!("CREATE ROLE {role} SUPERUSER LOGIN REPLICATION; EXCEPTION WHEN duplicate_object THEN NULL");
        let login = format!("ALTER ROLE {role} PASSWORD '{password}'");
        self.database.execute(&format!("DO $$ BEGIN {change}; END $$; {login}")).await?;
        let url = format!("postgres://{role}:{password}@postgres.test:{port}/{role}");
        self.put_secret("postgres", &json!({"url": url})).await
    }

    pub async fn put_secret(&self, name: &str, data: &Value) -> Result<()> {
        let meta = json!({"name": name, "namespace": self.namespace});
        apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data})).await.map(drop)
    }

    /// What a person would write, small enough for this node, with one view-syncer.
    pub fn cache(&self) -> Value {
        let small = json!({"requests": {"cpu": "10m", "memory": "64Mi"}});
        json!({
            "apiVersion": "zerocache.dev/v1alpha1",
            "kind": "ZeroCache",
            "metadata": {"name": NAME, "namespace": self.namespace},
            "spec": {
                "image": {"tag": OLD},
                "adminPassword": {"name": "admin", "key": "password"},
                "databases": {"upstream": {"urlSecretRef": {"name": "postgres", "key": "url"}}},
                "api": {
                    "queryUrls": [format!("http://api.test:{}/query", self.api_port)],
                    "mutateUrls": [format!("http://api.test:{}/mutate", self.api_port)],
                },
                "backup": {
                    "url": format!("s3://{BUCKET}/{}", self.namespace),
                    "endpoint": format!("http://s3.test:{}", self.ground.s3.port()),
                    "region": s3::REGION,
                    "credentialsSecretRef": {"name": "store", "accessKeyIdKey": "id", "secretAccessKeyKey": "key"},
                    "incrementalInterval": "1s",
                },
                "replicationManager": {"resources": small, "storage": {"size": "1Gi"}},
                "viewSyncer": {
                    "replicas": 1, "resources": small, "storage": {"size": "1Gi"}, "minReadySeconds": 0, "preStopDelaySeconds": 2,
                },
                "ingress": {"enabled": true, "provider": "HAProxyIngress", "className": "haproxy", "hosts": [self.host()]},
            },
        })
    }

    /// The name by which clients come in.
    pub fn host(&self) -> String {
        format!("{}.test", self.namespace)
    }

    /// For a fresh client that comes through the ingress.
    pub fn options(&self) -> Options {
        let mut options = Options::new(80, client_schema());
        options.address = format!("{}:80", self.host());
        options
    }

    /// A merge patch of the resource's spec.
    pub async fn change(&self, spec: Value) -> Result<()> {
        let patch = json!({"spec": spec}).to_string();
        kubectl(&["patch", "-n", &self.namespace, "zc", NAME, "--type=merge", "-p", &patch]).await.map(drop)
    }

    /// The resource as it is now.
    pub async fn look(&self) -> Result<Value> {
        get(&self.namespace, &["zc", NAME]).await
    }

    /// Waits for something of the resource; what it was then.
    pub async fn wait(&self, limit: Duration, what: &str, mut condition: impl FnMut(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + limit;
        loop {
            let cache = self.look().await?;
            if condition(&cache) {
                return Ok(cache);
            }
            ensure!(Instant::now() < deadline, "waited {limit:?} for {what}; the resource is {}", brief(&cache));
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until what is asked for now is served and nothing is under way.
    pub async fn ready(&self) -> Result<Value> {
        self.wait(READY, "Ready and nothing under way", is_settled).await
    }

    pub async fn pods(&self, role: &str) -> Result<Vec<Value>> {
        list(&self.namespace, "pods", role).await
    }

    /// Waits for something of a role's pods.
    pub async fn wait_pods(
        &self,
        role: &str,
        what: &str,
        mut condition: impl FnMut(&[Value]) -> bool,
    ) -> Result<Vec<Value>> {
        let deadline = Instant::now() + READY;
        loop {
            let pods = self.pods(role).await?;
            if condition(&pods) {
                return Ok(pods);
            }
            ensure!(Instant::now() < deadline, "waited {READY:?} for {what} of {role}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A fresh client that has its queries; retried, for balancers learn of new pods by and by.
    pub async fn client(&self, queries: &[Query]) -> Result<Client> {
        self.client_by(80, queries).await
    }

    /// The same by another proxy's port.
    pub async fn client_by(&self, port: u16, queries: &[Query]) -> Result<Client> {
        let deadline = Instant::now() + READY;
        loop {
            let mut options = self.options();
            options.address = format!("{}:{port}", self.host());
            match Client::start(options, queries).await {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Adds to an error what a person would look at; takes the deployment down after a success.
    pub async fn judge(self, outcome: Result<()>) -> Result<()> {
        self.explain(outcome).await?;
        kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]).await?;
        let _ = kubectl(&["delete", "zc", "-n", &self.namespace, "--all", "--timeout=90s"]).await;
        Ok(())
    }

    async fn explain<T>(&self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Ok(value) => Ok(value),
            Err(error) => Err(anyhow!("{error:#}\n{}", self.report().await)),
        }
    }

    /// What a person would look at.
    async fn report(&self) -> String {
        let namespace = self.namespace.as_str();
        let mut report = String::new();
        let looks: [&[&str]; 4] = [
            &["describe", "zc", "-n", namespace],
            &["get", "all,pvc,ingress,networkpolicy", "-n", namespace, "-o", "wide"],
            &["describe", "pods", "-n", namespace],
            &["get", "events", "-n", namespace, "--sort-by=.lastTimestamp"],
        ];
        for look in looks {
            let found = kubectl(look).await.unwrap_or_else(|error| format!("{error:#}"));
            let _ = writeln!(report, "--- kubectl {}\n{}", look.join(" "), end_of(&found, 120));
        }
        let pods = kubectl(&["get", "pods", "-n", namespace, "-o", "name"]).await.unwrap_or_default();
        for pod in pods.lines() {
            for previous in ["--previous=false", "--previous=true"] {
                if let Ok(log) = kubectl(&["logs", "-n", namespace, pod, "--tail=25", previous]).await {
                    let _ = writeln!(report, "--- the log of {pod} {previous}\n{log}");
                }
            }
        }
        let _ = writeln!(report, "--- the operator's log\n{}", operator_log(60).await);
        report
    }
}

fn end_of(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A condition's status and reason.
pub fn condition<'a>(cache: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let conditions = cache["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    let text = |key: &str| found.and_then(|condition| condition[key].as_str()).unwrap_or_default();
    (text("status"), text("reason"))
}

pub fn is_true(cache: &Value, kind: &str) -> bool {
    condition(cache, kind).0 == "True"
}

/// Speaks of the present spec, which is served and wholly rolled out.
pub fn is_settled(cache: &Value) -> bool {
    cache["status"]["observedGeneration"] == cache["metadata"]["generation"]
        && is_true(cache, "Ready")
        && condition(cache, "Progressing").0 == "False"
        && cache["status"]["currentGeneration"] == cache["spec"]["generation"]
}

/// The status in a few lines.
pub fn brief(cache: &Value) -> String {
    let status = &cache["status"];
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let conditions: Vec<_> =
        conditions.map(|it| format!("{}={} {}: {}", it["type"], it["status"], it["reason"], it["message"])).collect();
    format!(
        "{} at step {} {}\n{}",
        status["phase"],
        status["upgrade"]["step"],
        status["reset"]["step"],
        conditions.join("\n")
    )
}

pub fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Whether a pod takes work and is not on its way out.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True")
}

/// The image a pod runs, by its tag.
pub fn tag_of(pod: &Value) -> &str {
    let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default();
    image.rsplit(':').next().unwrap_or_default()
}

/// The only pod of a role.
pub fn only(pods: &[Value]) -> Result<&Value> {
    ensure!(pods.len() == 1, "there are {} pods, not one", pods.len());
    Ok(&pods[0])
}
