//! An owner with its log, subscribers, and a relay that cuts connections in the middle of anything.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use changes::{Batch, Log};
use rows::schema::ColumnSpec;
use rows::{Cell, Change, ColumnType, TableSpec, Transaction, Version};
use serde_json::json;
use streamer::{
    Error, Event, Fanout, FanoutOptions, Gate, Metrics, Options, Outcome, Role, Server, ServerOptions, Subscriber,
    Token,
};
use testkit::postgres::{Database, Postgres, Version as PostgresVersion};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use upstream::App;

pub const LIMIT: Duration = Duration::from_secs(30);

pub async fn database(test: &str) -> Database<'static> {
    Postgres::shared(PostgresVersion::V15).unwrap().create_database(test).await.unwrap()
}

pub fn log_options(database: &Database<'_>) -> changes::Options {
    changes::Options::new(database.url().parse().unwrap(), App::new("zero", 0).unwrap())
}

pub fn owner_row(id: &str) -> changes::Owner {
    changes::Owner { id: id.to_owned(), address: format!("{id}:4849") }
}

pub fn v(n: u64) -> Version {
    Version::new(n)
}

pub fn token() -> Token {
    Token::from_config(Some("the-token"), None).unwrap().unwrap()
}

pub fn server_options() -> ServerOptions {
    ServerOptions {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        token: Some(token()),
        refusal_delay: Duration::from_millis(20),
        drain_timeout: Duration::from_secs(5),
        ..ServerOptions::default()
    }
}

/// Of `/statz`.
pub const ADMIN_PASSWORD: &str = "pw";

/// A node that owns the log.
pub struct Owner {
    pub log: Log,
    pub fanout: Fanout,
    pub server: Port,
}

/// A running port.
pub struct Port {
    pub address: SocketAddr,
    pub gate: Gate,
    pub metrics: Metrics,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<Outcome>>,
}

impl Port {
    pub async fn start(options: ServerOptions) -> Port {
        let registry = prometheus::Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let status: port::Status = Arc::new(|wanted| Box::pin(async move { json!({ "node": { "asked": wanted } }) }));
        let failed_logins = prometheus::IntCounter::new("zero_failed", "failed").expect("a name");
        let page = port::StatusPage::new(status, Some(ADMIN_PASSWORD), false, failed_logins);
        let server = Server::build(options, registry, metrics.clone(), page).await.unwrap();
        let (address, gate) = (server.address(), server.gate());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run(async move { drop(stopped.await) }));
        Port { address, gate, metrics, stop: Some(stop), task: Some(task) }
    }

    pub async fn stop(&mut self) -> Outcome {
        drop(self.stop.take());
        tokio::time::timeout(LIMIT, self.task.take().unwrap()).await.unwrap().unwrap()
    }
}

impl Owner {
    /// Begins a log for the copy at version 10.
    pub async fn begin(database: &Database<'_>) -> Owner {
        Owner::begin_with(database, server_options(), |_| {}).await
    }

    pub async fn begin_with(
        database: &Database<'_>,
        server: ServerOptions,
        change: impl FnOnce(&mut FanoutOptions),
    ) -> Owner {
        let mut log = Log::open(&log_options(database)).await.unwrap();
        log.begin(v(10), &owner_row("first")).await.unwrap();
        Owner::serve(database, log, server, change).await
    }

    /// Takes an existing log over.
    pub async fn take_over(
        database: &Database<'_>,
        name: &str,
        server: ServerOptions,
        change: impl FnOnce(&mut FanoutOptions),
    ) -> Owner {
        let mut log = Log::open(&log_options(database)).await.unwrap();
        log.take_over(&owner_row(name)).await.unwrap();
        Owner::serve(database, log, server, change).await
    }

    async fn serve(
        database: &Database<'_>,
        log: Log,
        server: ServerOptions,
        change: impl FnOnce(&mut FanoutOptions),
    ) -> Owner {
        let lineage = log.lineage().await.unwrap().unwrap();
        let mut options = FanoutOptions::new(log_options(database), lineage);
        change(&mut options);
        let server = Port::start(server).await;
        let fanout = Fanout::new(options, server.metrics.clone());
        server.gate.set(Role::Owner(fanout.clone()));
        Owner { log, fanout, server }
    }

    pub async fn append(&mut self, transactions: &[Transaction]) {
        self.try_append(transactions).await.unwrap();
    }

    /// Stores, then publishes.
    pub async fn try_append(&mut self, transactions: &[Transaction]) -> changes::Result<()> {
        let batch = Batch::encode(transactions)?;
        self.log.append_batch(&batch).await?;
        self.fanout.publish(&batch);
        Ok(())
    }

    pub async fn purge(&mut self, bytes_kept: u64) {
        let purged = self.log.purge(self.fanout.floor(), bytes_kept).await.unwrap();
        self.fanout.purged(purged.start);
    }

    pub fn subscriber(&self, node: &str) -> Options {
        subscriber_at(self.server.address, node)
    }
}

pub fn subscriber_at(address: SocketAddr, node: &str) -> Options {
    Options { token: Some(token()), ..Options::new(format!("ws://{address}"), "zero", 0, node) }
}

pub fn table() -> Arc<TableSpec> {
    let column = |attnum, name: &str, ty| ColumnSpec {
        attnum,
        name: name.to_owned(),
        type_oid: 25,
        type_name: "text".to_owned(),
        ty,
        not_null: true,
    };
    Arc::new(TableSpec {
        oid: 7,
        schema: "public".to_owned(),
        name: "issue".to_owned(),
        columns: vec![column(1, "id", ColumnType::Int), column(2, "title", ColumnType::Str)],
        primary_key: vec!["id".to_owned()],
        identity: vec!["id".to_owned()],
        indexes: Vec::new(),
    })
}

pub fn transaction(version: u64, rows: i64, text: &str) -> Transaction {
    let table = table();
    let insert = |id| Change::Insert { table: Arc::clone(&table), new: vec![Cell::Int(id), Cell::Text(text.into())] };
    Transaction { version: v(version), commit_time_us: 5, changes: (0..rows).map(insert).collect() }
}

/// Small transactions of the given versions.
pub fn some(versions: impl IntoIterator<Item = u64>) -> Vec<Transaction> {
    versions.into_iter().map(|n| transaction(n, 2, &format!("text of {n}"))).collect()
}

pub fn versions(transactions: &[Transaction]) -> Vec<u64> {
    transactions.iter().map(|t| t.version.as_u64()).collect()
}

pub fn bytes(transaction: &Transaction) -> Vec<u8> {
    let mut out = Vec::new();
    changes::encode(transaction, &mut out);
    out
}

/// The next transactions; heads are skipped.
pub async fn next(subscriber: &mut Subscriber) -> Result<Vec<Transaction>, Error> {
    loop {
        match tokio::time::timeout(LIMIT, subscriber.next()).await.expect("an event within the limit")? {
            Event::Transactions(transactions) => return Ok(transactions),
            Event::Head { .. } | Event::Abreast { .. } => {}
        }
    }
}

/// Everything up to `end`, acknowledged as it comes.
pub async fn read_to(subscriber: &mut Subscriber, end: u64) -> Vec<Transaction> {
    let acks = subscriber.acks();
    let mut all: Vec<Transaction> = Vec::new();
    while all.last().is_none_or(|last| last.version < v(end)) {
        let more = next(subscriber).await.unwrap();
        acks.ack(more.last().unwrap().version);
        all.extend(more);
    }
    all
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Relays TCP to the present target. Each connection may pass a number of bytes, then it is cut.
#[derive(Clone)]
pub struct Relay {
    pub address: SocketAddr,
    state: Arc<Mutex<RelayState>>,
}

struct RelayState {
    target: SocketAddr,
    /// What each next connection may pass; the last one counts for all further ones. `None`: no limit.
    budget: Box<dyn FnMut() -> Option<u64> + Send>,
}

impl Relay {
    pub async fn start(target: SocketAddr, budget: impl FnMut() -> Option<u64> + Send + 'static) -> Relay {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let state = Arc::new(Mutex::new(RelayState { target, budget: Box::new(budget) }));
        let relay = Relay { address: listener.local_addr().unwrap(), state: Arc::clone(&state) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, budget) = {
                    let mut state = state.lock().unwrap();
                    (state.target, (state.budget)())
                };
                tokio::spawn(async move {
                    let Ok(server) = tokio::net::TcpStream::connect(target).await else { return };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    tokio::select! {
                        () = pass(from_client, to_server, None) => {}
                        () = pass(from_server, to_client, budget) => {}
                    }
                });
            }
        });
        relay
    }

    pub fn point_to(&self, target: SocketAddr) {
        self.state.lock().unwrap().target = target;
    }

    pub fn set_budget(&self, budget: impl FnMut() -> Option<u64> + Send + 'static) {
        self.state.lock().unwrap().budget = Box::new(budget);
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut budget: Option<u64>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
        let n = match &mut budget {
            None => n,
            Some(left) => {
                let passed = usize::try_from(*left).unwrap_or(n).min(n);
                *left -= passed as u64;
                passed
            }
        };
        if to.write_all(&buffer[..n]).await.is_err() || budget == Some(0) {
            return;
        }
    }
}
