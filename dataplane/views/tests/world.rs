//! Everything around the views: CVR database, replica and its writer, API server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ivm::Graph;
use protocol::ast::Ast;
use protocol::error::ErrorBody;
use replica::{Description, Identity, Loader, Opened, Reader, Replica, Writer};
use rows::{Batch, Change, Table, TableSpec, Transaction, Version};
use serde_json::{Value as Json, json};
use testkit::postgres::{self, Postgres};
use views::api::{
    Admission, Admitted, Command, Connect, ConnectionContext, ConnectionId, NamedQuery, Outbox, TransformFuture,
    Transformed, Transformer,
};
use views::limits::Limits;
use views::metrics::Metrics;
use views::store::{Copy, Unopened};
use views::{Ending, Options, Started};

use crate::client::{Client, Store, key_text};
use crate::data::{self, Ask, CLIENTS, Keys, MUTATIONS, PERMISSIONS, cells, client_schema};

fn unopened(error: impl std::fmt::Display) -> Unopened {
    Unopened { message: format!("{error:#}"), entry: &fault::path::CVR_AWAY }
}

/// How the API server answers for one query name.
#[derive(Clone, Debug)]
pub enum Reply {
    Ask(Ask),
    Ast(Json),
    /// The rows of `acct` that the asking user owns.
    Mine,
    /// An error for this query only.
    Refuse(String),
    /// The answer lacks the query.
    Omit,
}

#[derive(Default)]
pub struct ApiState {
    pub replies: BTreeMap<String, Reply>,
    /// The whole call fails.
    pub failure: Option<ErrorBody>,
    /// Only the empty validation fails.
    pub validation_failure: Option<ErrorBody>,
    /// The call fails for this user.
    pub failing_user: Option<(String, ErrorBody)>,
    pub delay: Duration,
    /// How often it was called.
    pub calls: u64,
    pub unconfigured: bool,
    /// Queries with this token fail as a whole, while the token is found good.
    pub weak_token: Option<String>,
    /// Calls for queries of this name end in a panic.
    pub panics: Option<String>,
}

/// The application's API server.
#[derive(Clone, Default)]
pub struct Api(pub Arc<Mutex<ApiState>>);

impl Api {
    pub fn set(&self, name: &str, reply: Reply) {
        self.0.lock().unwrap().replies.insert(name.to_owned(), reply);
    }

    pub fn ask(&self, name: &str, ask: Ask) {
        self.set(name, Reply::Ask(ask));
    }

    pub fn with<T>(&self, change: impl FnOnce(&mut ApiState) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }
}

impl Transformer for Api {
    fn configured(&self) -> bool {
        !self.0.lock().unwrap().unconfigured
    }

    fn transform(&self, context: Arc<ConnectionContext>, queries: Vec<NamedQuery>) -> TransformFuture {
        let (delay, result) = {
            let mut state = self.0.lock().unwrap();
            state.calls += 1;
            let user_failure = state
                .failing_user
                .as_ref()
                .filter(|(user, _)| Some(user) == context.user_id.as_ref())
                .map(|f| f.1.clone());
            let validation = queries.is_empty().then(|| state.validation_failure.clone()).flatten();
            let is_weak = !queries.is_empty() && context.token.is_some() && context.token == state.weak_token;
            let weak = is_weak.then(|| crate::queries::failure(500));
            if let Some(name) = &state.panics
                && queries.iter().any(|q| q.name == *name)
            {
                return Box::pin(async { panic!("as the test wants it") });
            }
            let result = match state.failure.clone().or(user_failure).or(validation).or(weak) {
                Some(failure) => Err(failure),
                None => Ok(queries
                    .into_iter()
                    .filter_map(|q| {
                        let ast = match state.replies.get(&q.name)? {
                            Reply::Ask(ask) => ask.ast(),
                            Reply::Mine => mine(context.user_id.as_deref().unwrap_or_default()).ast(),
                            Reply::Ast(ast) => ast.clone(),
                            Reply::Refuse(message) => {
                                let error = json!({"error": "app", "id": q.id, "name": q.name, "message": message});
                                return Some(Transformed::Failed { id: q.id, error });
                            }
                            Reply::Omit => return None,
                        };
                        Some(Transformed::Ast { id: q.id, ast: Box::new(Ast::from_value("ast", &ast).unwrap()) })
                    })
                    .collect()),
            };
            (state.delay, result)
        };
        Box::pin(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            result
        })
    }
}

/// One life of the views, on a runtime of its own so that it can end at once.
struct Life {
    runtime: tokio::runtime::Runtime,
    started: Started,
    metrics: Metrics,
}

pub struct World {
    folder: tempfile::TempDir,
    path: PathBuf,
    pub writer: Writer,
    cvr_url: String,
    pub cvr_schema: String,
    pub api: Api,
    life: Option<Life>,
    /// What upstream holds: rows by table and key text.
    pub model: BTreeMap<String, BTreeMap<String, Json>>,
    pub version: u64,
    pub revalidate: Duration,
    pub retransform: Duration,
    pub limits: Limits,
    pub cvr_connections_max: usize,
    pub client_queries: bool,
    pub copy: Copy,
    /// Whether readers that are opened from now on panic.
    pub no_readers: Arc<AtomicBool>,
    /// Whether connections to the CVR database that are opened from now on panic.
    pub no_connections: Arc<AtomicBool>,
    /// So many more readers of the replica cannot be opened.
    pub unreadable: Arc<AtomicU64>,
    /// Who was let in last, by group and client.
    pub admitted: Arc<Mutex<BTreeMap<(String, String), ConnectionId>>>,
}

pub fn identity() -> Identity {
    Identity { app: "zero".into(), shard: 0 }
}

pub fn shared() -> &'static Postgres {
    Postgres::shared(postgres::Version::V15).unwrap()
}

pub fn context(user: Option<&str>) -> ConnectionContext {
    ConnectionContext { user_id: user.map(str::to_owned), ..ConnectionContext::default() }
}

static CONNECTIONS: AtomicU64 = AtomicU64::new(1);
static SCHEMAS: AtomicU64 = AtomicU64::new(1);

impl World {
    /// Views over an empty replica of [`data::tables`], with a CVR schema of their own in the shared server.
    pub async fn new() -> World {
        World::on(&shared().url("postgres")).await
    }

    pub async fn on(cvr_url: &str) -> World {
        let mut world = World::stopped(cvr_url);
        world.start().await;
        world
    }

    pub fn stopped(cvr_url: &str) -> World {
        World::of_copy(cvr_url, "copy-1", 10)
    }

    /// Over a copy of the (empty) upstream database that was made at a version.
    pub fn of_copy(cvr_url: &str, copy: &str, version: u64) -> World {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("replica.db");
        let description = Description {
            identity: identity(),
            replica_id: copy.into(),
            slot: "slot".into(),
            initial_version: Version::new(version),
        };
        Loader::create(&path, description, data::tables()).unwrap().finish(Version::new(version)).unwrap();
        let Opened::Usable(opened) = Replica::open(&path, &identity()).unwrap() else { panic!("no replica") };
        World {
            writer: opened.writer().unwrap(),
            folder,
            path,
            cvr_url: cvr_url.to_owned(),
            cvr_schema: format!("cvr/{}", SCHEMAS.fetch_add(1, Ordering::Relaxed)),
            api: Api::default(),
            life: None,
            model: BTreeMap::new(),
            version,
            revalidate: Duration::from_secs(300),
            retransform: Duration::from_secs(300),
            // The only node: one that was killed must not count as living for a while.
            limits: Limits { node_live: Duration::ZERO, ..Limits::default() },
            cvr_connections_max: 2,
            client_queries: true,
            copy: Copy { id: copy.into(), version: Version::new(version) },
            no_readers: Arc::default(),
            no_connections: Arc::default(),
            unreadable: Arc::default(),
            admitted: Arc::default(),
        }
    }

    pub async fn start(&mut self) {
        assert!(self.life.is_none());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let (url, path, no_readers) = (self.cvr_url.clone(), self.path.clone(), Arc::clone(&self.no_readers));
        let unreadable = Arc::clone(&self.unreadable);
        let no_connections = Arc::clone(&self.no_connections);
        let options = Options {
            clients_table: CLIENTS.into(),
            mutations_table: MUTATIONS.into(),
            permissions_table: PERMISSIONS.into(),
            client_queries: self.client_queries,
            cvr_schema: self.cvr_schema.clone(),
            cvr: Arc::new(move || {
                let url = url.clone();
                assert!(!no_connections.load(Ordering::Relaxed), "as the test wants it");
                Box::pin(async move { postgres::connect(&url).await.map_err(unopened) })
            }),
            cvr_connections_max: self.cvr_connections_max,
            copy: self.copy.clone(),
            is_alone: false,
            memory_bytes: None,
            cvr_purge_hours: 48,
            hydrators: 2,
            spool_folder: self.folder.path().to_owned(),
            open_reader: Arc::new(move || {
                assert!(!no_readers.load(Ordering::Relaxed), "as the test wants it");
                let one_less = |left: u64| left.checked_sub(1);
                let fails = unreadable.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok();
                Reader::open(if fails { Path::new("/dev/null/replica.db") } else { &path })
            }),
            schema: self.writer.schema(),
            transformer: Arc::new(self.api.clone()),
            revalidate: self.revalidate,
            retransform: self.retransform,
            metrics: metrics.clone(),
        };
        let started = runtime.spawn(views::start_within(options, self.limits.clone())).await.unwrap().unwrap();
        self.life = Some(Life { runtime, started, metrics });
    }

    /// As a killed process: whatever is not in the database is lost.
    pub fn kill(&mut self) {
        let life = self.life.take().unwrap();
        life.runtime.shutdown_background();
    }

    /// As a process that gets a signal and ends in peace.
    pub async fn drain(&mut self) {
        let life = self.life.take().unwrap();
        let (done, drained) = tokio::sync::oneshot::channel();
        life.started.handle.commands.send(Command::Drain { done, within: Duration::ZERO }).unwrap();
        tokio::time::timeout(Duration::from_secs(20), drained).await.expect("drained").unwrap();
        assert_eq!(life.started.ended.await.unwrap(), Ending::Drained);
        life.runtime.shutdown_background();
    }

    pub fn metrics(&self) -> &Metrics {
        &self.life.as_ref().unwrap().metrics
    }

    pub fn is_running(&self) -> bool {
        self.life.is_some()
    }

    /// Since when something waits for the CVR database.
    pub fn unflushed_since(&self) -> Option<Instant> {
        *self.life.as_ref().unwrap().started.unflushed_since.borrow()
    }

    /// Why the views have ended, if they have. Says so once.
    pub fn has_ended(&mut self) -> Option<Ending> {
        self.life.as_mut()?.started.ended.try_recv().ok()
    }

    /// Why the views end.
    pub async fn ended(&mut self) -> Ending {
        let life = self.life.take().unwrap();
        let reason = tokio::time::timeout(Duration::from_secs(20), life.started.ended).await.unwrap().unwrap();
        life.runtime.shutdown_background();
        reason
    }

    pub fn handle(&self) -> views::api::Handle {
        self.life.as_ref().unwrap().started.handle.clone()
    }

    pub fn alive(&mut self) {
        let ended = self.life.as_mut().unwrap().started.ended.try_recv();
        assert!(matches!(ended, Err(tokio::sync::oneshot::error::TryRecvError::Empty)), "the views ended: {ended:?}");
    }

    /// Applies changes upstream and publishes them, if the views run.
    pub async fn apply(&mut self, changes: Vec<Change>) {
        self.version += 10;
        self.apply_at(self.version, changes).await;
    }

    pub async fn apply_at(&mut self, version: u64, changes: Vec<Change>) {
        let batch = self.commit_at(version, changes);
        if self.life.is_some() {
            self.publish(batch).await;
        }
    }

    /// Commits to the replica and does not say so yet.
    pub fn commit(&mut self, changes: Vec<Change>) -> Arc<Batch> {
        self.version += 10;
        self.commit_at(self.version, changes)
    }

    pub fn commit_at(&mut self, version: u64, changes: Vec<Change>) -> Arc<Batch> {
        let transaction = Transaction { version: Version::new(version), commit_time_us: version as i64, changes };
        self.writer.apply(&[transaction]).unwrap().unwrap()
    }

    /// The next index that the views wish for.
    pub async fn wanted_index(&self) -> views::Wanted {
        let batches = self.life.as_ref().expect("started").started.batches.clone();
        tokio::time::timeout(crate::client::PATIENCE, batches.wanted_index()).await.expect("a wish within the time")
    }

    pub async fn publish(&self, batch: Arc<Batch>) {
        self.life.as_ref().unwrap().started.batches.publish(batch).await;
    }

    /// Publishes, however long it takes.
    pub fn publishing(&self, batch: Arc<Batch>) -> tokio::task::JoinHandle<()> {
        let to = self.life.as_ref().unwrap().started.batches.clone();
        tokio::spawn(async move { to.publish(batch).await })
    }

    /// The replica as it is now.
    pub fn save(&mut self) -> Vec<u8> {
        self.writer.checkpoint().unwrap();
        std::fs::read(&self.path).unwrap()
    }

    pub fn restore(&mut self, saved: Vec<u8>) {
        // The views' threads may take a moment to let go of the file.
        std::thread::sleep(Duration::from_millis(500));
        let path = self.folder.path().join("restored.db");
        std::fs::write(&path, saved).unwrap();
        let Opened::Usable(opened) = Replica::open(&path, &identity()).unwrap() else { panic!("no replica") };
        self.writer = opened.writer().unwrap();
        self.path = path;
    }

    pub fn spec(&self, table: &str) -> Arc<TableSpec> {
        self.writer.specs().into_iter().find(|s| s.wire_name() == table).unwrap()
    }

    /// The change that makes `row` what upstream has.
    pub fn put(&mut self, table: &str, row: Json) -> Change {
        let spec = self.spec(table);
        let key = upstream_key(&spec, &row);
        let columns: Vec<String> = spec.columns.iter().map(|c| c.name.clone()).collect();
        let new = cells(&spec, &columns, &row);
        match self.model.entry(table.to_owned()).or_default().insert(key, row) {
            None => Change::Insert { table: spec, new },
            Some(_) => Change::Update { table: spec, key: None, new },
        }
    }

    pub fn del(&mut self, table: &str, row: &Json) -> Change {
        let spec = self.spec(table);
        self.model.entry(table.to_owned()).or_default().remove(&upstream_key(&spec, row));
        let key = cells(&spec, &spec.identity, row);
        Change::Delete { table: spec, key }
    }

    pub async fn upsert(&mut self, table: &str, row: Json) {
        let change = self.put(table, row);
        self.apply(vec![change]).await;
    }

    pub async fn delete(&mut self, table: &str, row: Json) {
        let change = self.del(table, &row);
        self.apply(vec![change]).await;
    }

    /// Deploys permissions, in a commit of their own.
    pub async fn deploy(&mut self, permissions: &Json) {
        let change = self.deployment(permissions);
        self.apply(vec![change]).await;
    }

    pub fn deployment(&mut self, permissions: &Json) -> Change {
        self.put(PERMISSIONS, json!({"lock": true, "permissions": permissions, "hash": "h"}))
    }

    pub async fn issue(&mut self, id: &str, owner: &str, n: i64) {
        self.upsert("issue", issue(id, owner, n)).await;
    }

    /// Connects and sends `initConnection`.
    pub fn connect(&self, group: &str, client: &str, store: Store, init: Json) -> Client {
        self.connect_as(group, client, store, init, None)
    }

    pub fn connect_as(&self, group: &str, client: &str, store: Store, init: Json, user: Option<&str>) -> Client {
        let client = self.socket(group, client, store, user, 64 << 20);
        client.init(&init, context(user));
        client
    }

    /// Connects without a message.
    pub fn socket(&self, group: &str, client: &str, store: Store, user: Option<&str>, limit: usize) -> Client {
        self.socket_accepted(group, client, store, user, limit, Instant::now())
    }

    /// Connects without a message, after the socket waited for a while.
    pub fn socket_accepted(
        &self,
        group: &str,
        client: &str,
        store: Store,
        user: Option<&str>,
        limit: usize,
        accepted_at: Instant,
    ) -> Client {
        let (outbox, receiver) = Outbox::new(limit);
        let connection = ConnectionId(CONNECTIONS.fetch_add(1, Ordering::Relaxed));
        let handle = self.handle();
        let connect = Connect {
            id: connection,
            client_group_id: group.into(),
            client_id: client.into(),
            wsid: "ws".into(),
            profile_id: "p".into(),
            base_cookie: store.cookie.clone(),
            protocol_version: 51,
            accepted_at,
            context: context(user).into(),
            outbox,
            admission: self.admission(group, client, connection),
        };
        handle.commands.send(Command::Connect(Box::new(connect))).unwrap();
        Client {
            handle,
            connection,
            id: client.into(),
            group: group.into(),
            keys: Keys::Usual,
            user: user.map(str::to_owned),
            past: vec![store.clone()],
            store,
            outbox: receiver,
            open: None,
            open_id: None,
            log: vec![],
            watch: None,
        }
    }

    /// What the gateway does.
    fn admission(&self, group: &str, client: &str, connection: ConnectionId) -> Admission {
        let (admitted, key) = (Arc::clone(&self.admitted), (group.to_owned(), client.to_owned()));
        Admission::new(move || match admitted.lock().unwrap().insert(key, connection) {
            Some(old) => Admitted::InsteadOf(old),
            None => Admitted::Alone,
        })
    }

    /// The rows that these queries have now, computed from scratch.
    pub fn expected<'a>(&self, queries: impl IntoIterator<Item = &'a Ask>) -> BTreeMap<(String, String), Json> {
        self.expected_by(Keys::Usual, queries)
    }

    /// The same, as a client with these keys knows them.
    pub fn expected_by<'a>(
        &self,
        choice: Keys,
        queries: impl IntoIterator<Item = &'a Ask>,
    ) -> BTreeMap<(String, String), Json> {
        let mut reader = Reader::open(&self.path).unwrap();
        reader.begin().unwrap();
        let schema = reader.schema();
        let keys = |table: &Table| -> Vec<usize> {
            data::client_key(&table.name, choice).iter().map(|c| table.position(c).unwrap()).collect()
        };
        let mut rows = BTreeMap::new();
        for ask in queries {
            let mut graph = Graph::build(&ask.query(), &schema, &keys).unwrap();
            graph
                .hydrate(&mut reader, &mut |put| {
                    let table = &put.table.table;
                    let row: Json = table
                        .columns
                        .iter()
                        .zip(put.row.iter())
                        .map(|(c, v)| (c.name.to_string(), to_json(v)))
                        .collect::<serde_json::Map<_, _>>()
                        .into();
                    rows.insert((table.name.to_string(), key_text(choice, &table.name, &row)), row);
                })
                .unwrap();
        }
        reader.end();
        rows
    }

    /// A connection to the CVR database.
    pub async fn cvr(&self) -> tokio_postgres::Client {
        postgres::connect(&self.cvr_url).await.unwrap()
    }
}

fn to_json(value: rows::ValueRef<'_>) -> Json {
    match value {
        rows::ValueRef::Null => Json::Null,
        rows::ValueRef::Bool(b) => b.into(),
        rows::ValueRef::Int(i) => i.into(),
        rows::ValueRef::Float(f) => f.into(),
        rows::ValueRef::Str(s) => s.into(),
        rows::ValueRef::Json(s) => serde_json::from_str(s).unwrap(),
    }
}

fn upstream_key(spec: &TableSpec, row: &Json) -> String {
    spec.primary_key.iter().map(|c| row[c].to_string()).collect::<Vec<_>>().join(",")
}

/// What [`Reply::Mine`] stands for.
pub fn mine(user: &str) -> Ask {
    data::all("acct").by("owner", user)
}

pub fn acct(id: i64, owner: &str, num: i64) -> Json {
    json!({"id": id, "owner": owner, "secret": format!("of {owner}"), "num": num})
}

pub fn issue(id: &str, owner: &str, n: i64) -> Json {
    json!({"id": id, "owner": owner, "open": n % 2 == 0, "n": n})
}

/// `initConnection` with the schema and these operations.
pub fn init(ops: &[Json]) -> Json {
    init_by(Keys::Usual, ops)
}

/// The same with a schema that declares these keys.
pub fn init_by(keys: Keys, ops: &[Json]) -> Json {
    json!({"desiredQueriesPatch": ops, "clientSchema": client_schema(keys)})
}

/// `initConnection` of a client whose database knows its schema.
pub fn again(ops: &[Json]) -> Json {
    json!({"desiredQueriesPatch": ops})
}

impl Drop for World {
    fn drop(&mut self) {
        if self.life.is_some() {
            self.kill();
        }
    }
}
