//! Deployments of many processes: real Postgres, a real object store behind a way that can break, replication-managers,
//! view-syncers, and two load balancers, one for clients and one in front of the replication-managers.
//!
//! ```text
//! tabs --> door --> view-syncers --> stream --> replication-manager --> Postgres
//!                        |                              |
//!                        +---- restore <-- store <-- backup
//! ```

mod backup_command;
mod bad_input;
mod bad_store;
mod behind;
mod busy_restart;
mod crowd;
mod discovery;
mod faults;
mod generations;
mod lost_backup;
mod lost_replica;
mod node_status;
mod nodes;
mod pause;
mod rolling_upgrade;
mod secrets;
mod speed;
mod standby;
mod store;
mod take_over;
mod tls;
mod upstream_load;
mod writer;

use std::time::Duration;

use anyhow::{Context, Result};
use testkit::api::Api;
use testkit::client::Options;
use testkit::pgbouncer::PgBouncer;
use testkit::postgres::{self, Database, Postgres, Version};
use testkit::process::ZeroCache;
use testkit::proxy::{Choice, Proxy};

use self::store::ObjectStore;
use crate::app::{ROWS_SQL, TABLES_SQL, app, client_schema};

/// How long a node may take until it is ready on a busy machine of two cores.
pub const READY: Duration = Duration::from_secs(60);

/// What a deployment consists of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names the database, for whoever looks at Postgres.
    pub name: &'static str,
    pub syncers: usize,
    /// Whether the replica is backed up in an object store; otherwise view-syncers start from the replication-manager.
    pub has_store: bool,
    /// Whether the CVR and change databases are reached through pgbouncer.
    pub has_pooler: bool,
    /// Whether Postgres is this deployment's alone, because the test restarts it or counts what it does.
    pub owns_postgres: bool,
    pub postgres_settings: &'static [(&'static str, &'static str)],
    pub sql: String,
    /// For every node.
    pub settings: Vec<(&'static str, String)>,
}

impl Plan {
    pub fn new(name: &'static str) -> Plan {
        Plan {
            name,
            syncers: 2,
            has_store: false,
            has_pooler: false,
            owns_postgres: false,
            postgres_settings: &[],
            sql: format!("{TABLES_SQL}{ROWS_SQL}"),
            settings: Vec::new(),
        }
    }
}

/// A deployment. Nodes are started and stopped by the tests.
pub struct Cluster {
    pub plan: Plan,
    pub database: Database<'static>,
    pub api: Api,
    pub store: Option<ObjectStore>,
    pooler: Option<PgBouncer>,
    /// In front of the view-syncers.
    pub door: Proxy,
    /// In front of the replication-managers.
    pub stream: Proxy,
    pub managers: Vec<ZeroCache>,
    pub syncers: Vec<ZeroCache>,
    /// Nodes that were replaced; their logs still count.
    gone: Vec<ZeroCache>,
    numbers: usize,
}

impl Cluster {
    /// Postgres, store, pooler and balancers; no node yet.
    pub async fn prepare(plan: Plan) -> Result<Cluster> {
        let server = if plan.owns_postgres {
            // Lives until the process ends; its guard stops it then.
            let usual = [("max_connections", "300")];
            let settings = usual.iter().chain(plan.postgres_settings);
            let settings = settings.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let options = postgres::Options { settings, ..Default::default() };
            Box::leak(Box::new(Postgres::start_with(Version::V15, options)?))
        } else {
            Postgres::shared(Version::V15)?
        };
        let database = server.create_database(plan.name).await?;
        database.execute(&plan.sql).await?;
        let api = Api::start(app(&database.url())).await?;
        let store = if plan.has_store { Some(ObjectStore::start().await?) } else { None };
        let pooler = if plan.has_pooler { Some(PgBouncer::start(server, 20)?) } else { None };
        Ok(Cluster {
            plan,
            database,
            api,
            store,
            pooler,
            door: Proxy::balance(&[], Choice::Random).await?,
            stream: Proxy::balance(&[], Choice::RoundRobin).await?,
            managers: Vec::new(),
            syncers: Vec::new(),
            gone: Vec::new(),
            numbers: 0,
        })
    }

    /// Everything started: the replication-manager first, then the view-syncers at once.
    pub async fn start(plan: Plan) -> Result<Cluster> {
        let mut cluster = Self::prepare(plan).await?;
        let started = cluster.start_nodes().await;
        started.with_context(|| cluster.report())?;
        Ok(cluster)
    }

    async fn start_nodes(&mut self) -> Result<()> {
        self.add_manager().await?;
        for _ in 0..self.plan.syncers {
            self.spawn_syncer()?;
        }
        self.await_syncers().await
    }

    /// For a fresh client behind the balancer.
    pub fn options(&self) -> Options {
        Options::new(self.door.port(), client_schema())
    }

    /// The end of every node's log, for failures.
    pub fn report(&self) -> String {
        let nodes = self.managers.iter().chain(&self.syncers).chain(self.gone.iter().rev().take(2));
        let tails = nodes.map(|node| format!("--- the log of {} ends:\n{}", node.name(), node.log_tail(25)));
        tails.collect::<Vec<_>>().join("\n")
    }

    /// Fails on a panic or on an ERROR line nobody announced, in the log of any node that ever ran.
    pub fn check_logs(&self) -> Result<()> {
        self.managers.iter().chain(&self.syncers).chain(&self.gone).try_for_each(ZeroCache::check_log)
    }
}
