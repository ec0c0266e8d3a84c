//! A scripted client of the sync protocol. It applies pokes to a map as the published client does, and reports every breach of
//! the poke rules as an error instead of tolerating it.
//!
//! One [`Client`] is one tab: it keeps its store (rows, cookie, desired and got queries) across reconnects, like the real
//! client's storage, and sends on a new connection what the server does not know yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

pub type Row = Map<String, Value>;
/// table -> primary key as JSON text -> row
pub type Tables = BTreeMap<String, BTreeMap<String, Row>>;

/// Who the client is and how it speaks.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port` of the server.
    pub address: String,
    pub protocol_version: u32,
    pub client_group_id: String,
    pub client_id: String,
    pub user_id: Option<String>,
    pub auth_token: Option<String>,
    pub client_schema: Value,
    /// Whether `initConnection` travels in the handshake's header, as the real client does when it fits.
    pub init_in_header: bool,
    /// How long queries stay after they are no longer desired.
    pub ttl_ms: u64,
    /// All tabs of the group, shared between siblings: servers forget clients that `activeClients` does not name.
    active_clients: Arc<Mutex<BTreeSet<String>>>,
}

impl Options {
    /// A fresh client in a fresh group.
    #[must_use]
    pub fn new(port: u16, client_schema: Value) -> Options {
        let client_id = random_id();
        Options {
            active_clients: Arc::new(Mutex::new(BTreeSet::from([client_id.clone()]))),
            address: format!("127.0.0.1:{port}"),
            protocol_version: 51,
            client_group_id: random_id(),
            client_id,
            user_id: Some("u1".to_owned()),
            auth_token: None,
            client_schema,
            init_in_header: true,
            ttl_ms: 300_000,
        }
    }

    /// Another client of the same group.
    #[must_use]
    pub fn sibling(&self) -> Options {
        let client_id = random_id();
        self.active_clients.lock().unwrap_or_else(PoisonError::into_inner).insert(client_id.clone());
        Options { client_id, ..self.clone() }
    }
}

fn random_id() -> String {
    (0..18).map(|_| char::from_digit(rand::random_range(0..32), 32).unwrap_or('0')).collect()
}

/// A query a client can desire.
#[derive(Clone, Debug, PartialEq)]
pub enum Query {
    Named { name: String, args: Value },
    Ast(Value),
}

impl Query {
    #[must_use]
    pub fn named(name: &str, args: Value) -> Query {
        Query::Named { name: name.to_owned(), args }
    }

    /// Opaque to the server; any function of the content will do.
    #[must_use]
    pub fn hash(&self) -> String {
        let text = match self {
            Query::Named { name, args } => format!("{name}:{args}"),
            Query::Ast(ast) => ast.to_string(),
        };
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in text.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        format!("{hash:x}")
    }
}

/// What the client holds, and what has happened to it.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub rows: Tables,
    pub cookie: Option<String>,
    /// The server's echo of desired queries, by client of the group.
    pub desired: BTreeMap<String, BTreeSet<String>>,
    pub got: BTreeSet<String>,
    pub last_mutation_ids: BTreeMap<String, u64>,
    /// (client, mutation) -> result
    pub mutation_results: BTreeMap<(String, u64), Value>,
    pub transform_errors: Vec<Value>,
    pub counts: Counts,
    /// Body of an `error` message on the current connection.
    pub error: Option<Value>,
    pub connected: bool,
    /// Why the current connection has ended.
    pub closed: Option<String>,
    /// The first breach of the protocol's rules; it stays.
    pub violation: Option<String>,
    /// The last messages of both directions, cut short, for failures.
    pub transcript: VecDeque<String>,
    open: Option<OpenPoke>,
    /// Which connection may write here: an aborted reader can still be at work for a moment.
    connection: u64,
}

impl Store {
    fn record(&mut self, direction: char, text: &str) {
        if self.transcript.len() == 40 {
            self.transcript.pop_front();
        }
        self.transcript.push_back(format!("{direction} {}", text.chars().take(400).collect::<String>()));
    }
}

/// Traffic since the store was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub pokes: u64,
    pub puts: u64,
    /// Puts of rows that the client held with the same content.
    pub redundant_puts: u64,
    pub deletes: u64,
    /// Deletes of rows that the client did not hold.
    pub redundant_deletes: u64,
    pub pongs: u64,
}

#[derive(Clone, Debug)]
struct OpenPoke {
    id: String,
    parts: Vec<Value>,
}

type Socket = WebSocketStream<TcpStream>;

/// One scripted tab.
#[derive(Debug)]
pub struct Client {
    pub options: Options,
    wanted: BTreeMap<String, (Query, u64)>,
    pending: Vec<Value>,
    next_mutation_id: u64,
    store: Arc<Mutex<Store>>,
    changed: Arc<watch::Sender<u64>>,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    sink: SplitSink<Socket, Message>,
    reader: JoinHandle<()>,
}

impl Client {
    #[must_use]
    pub fn new(options: Options) -> Client {
        Client {
            options,
            wanted: BTreeMap::new(),
            pending: Vec::new(),
            next_mutation_id: 1,
            store: Arc::new(Mutex::new(Store::default())),
            changed: Arc::new(watch::Sender::new(0)),
            connection: None,
        }
    }

    /// Connects a fresh client that wants the queries, and waits until all are got.
    pub async fn start(options: Options, queries: &[Query]) -> Result<Client> {
        let mut client = Client::new(options);
        client.want(queries);
        client.connect().await?;
        client.wait_got(queries).await?;
        Ok(client)
    }

    /// The store as it is now.
    #[must_use]
    pub fn store(&self) -> Store {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    #[must_use]
    pub fn cookie(&self) -> Option<String> {
        self.lock().cookie.clone()
    }

    /// Queries currently wanted, by hash.
    pub fn wanted(&self) -> impl Iterator<Item = &Query> {
        self.wanted.values().map(|(query, _)| query)
    }

    /// Adds to what the next connection will ask for, without sending.
    pub fn want(&mut self, queries: &[Query]) {
        for query in queries {
            self.wanted.insert(query.hash(), (query.clone(), self.options.ttl_ms));
        }
    }

    /// Opens the socket, waits for `connected`, and sends what the server does not know yet.
    pub async fn connect(&mut self) -> Result<()> {
        self.kill();
        let init = self.init_connection();
        {
            let mut store = self.lock();
            store.connected = false;
            store.closed = None;
            store.error = None;
            store.open = None;
            let header = if self.options.init_in_header { init.to_string() } else { String::new() };
            let cookie = format!("connects at {:?} {header}", store.cookie);
            store.record('>', &cookie);
        }
        let mut header = Map::new();
        if self.options.init_in_header {
            header.insert("initConnectionMessage".to_owned(), init.clone());
        }
        if let Some(token) = &self.options.auth_token {
            header.insert("authToken".to_owned(), json!(token));
        }
        let socket = self.handshake(&Value::Object(header)).await?;
        self.adopt(socket);
        self.wait_for("connected", |store| store.connected).await?;
        if !self.options.init_in_header {
            self.send(&init).await?;
        }
        let acknowledged = self.lock().last_mutation_ids.get(&self.options.client_id).copied().unwrap_or(0);
        self.pending.retain(|mutation| mutation["id"].as_u64().is_some_and(|id| id > acknowledged));
        for mutation in self.pending.clone() {
            self.send_push(&mutation).await?;
        }
        Ok(())
    }

    /// `initConnection` with the difference between what is wanted and what the server has echoed.
    fn init_connection(&self) -> Value {
        let store = self.lock();
        let known = store.desired.get(&self.options.client_id).cloned().unwrap_or_default();
        let mut patch: Vec<_> = self
            .wanted
            .iter()
            .filter(|(hash, _)| !known.contains(*hash))
            .map(|(hash, (query, ttl))| put(hash, query, *ttl))
            .collect();
        patch.extend(
            known.iter().filter(|hash| !self.wanted.contains_key(*hash)).map(|hash| json!({"op": "del", "hash": hash})),
        );
        let mut body = json!({"desiredQueriesPatch": patch});
        if store.cookie.is_none() {
            body["clientSchema"] = self.options.client_schema.clone();
        }
        if self.options.init_in_header {
            body["activeClients"] = json!(*self.options.active_clients.lock().unwrap_or_else(PoisonError::into_inner));
        }
        json!(["initConnection", body])
    }

    async fn handshake(&self, header: &Value) -> Result<Socket> {
        let (cookie, last_mutation_id) = {
            let store = self.lock();
            (
                store.cookie.clone().unwrap_or_default(),
                store.last_mutation_ids.get(&self.options.client_id).copied().unwrap_or(0),
            )
        };
        let options = &self.options;
        let encode =
            |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let uri = format!(
            "ws://{}/sync/v{}/connect?clientID={}&clientGroupID={}&userID={}&baseCookie={}&ts=1234.5&lmid={last_mutation_id}&wsid={}&profileID=p1",
            options.address,
            options.protocol_version,
            encode(&options.client_id),
            encode(&options.client_group_id),
            encode(options.user_id.as_deref().unwrap_or_default()),
            encode(&cookie),
            random_id(),
        );
        let mut request = uri.into_client_request()?;
        let protocol = encode(&base64::engine::general_purpose::STANDARD.encode(header.to_string()));
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol.parse()?);
        let stream =
            TcpStream::connect(&options.address).await.with_context(|| format!("connect to {}", options.address))?;
        stream.set_nodelay(true)?;
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.context("upgrade to a WebSocket")?;
        Ok(socket)
    }

    fn adopt(&mut self, socket: Socket) {
        let (sink, source) = socket.split();
        let reader = Reader {
            store: Arc::clone(&self.store),
            changed: Arc::clone(&self.changed),
            keys: primary_keys(&self.options.client_schema),
            columns: columns(&self.options.client_schema),
            connection: self.lock().connection,
        };
        self.connection = Some(Connection { sink, reader: tokio::spawn(reader.run(source)) });
    }

    /// Sends any frame, also an illegal one.
    pub async fn send(&mut self, message: &Value) -> Result<()> {
        self.send_text(message.to_string()).await
    }

    /// Sends text as it is.
    pub async fn send_text(&mut self, text: String) -> Result<()> {
        self.lock().record('>', &text);
        let connection = self.connection.as_mut().context("the client is not connected")?;
        connection.sink.send(Message::text(text)).await.context("send a message")
    }

    /// Adds and removes desired queries; while disconnected it is only remembered.
    pub async fn change_queries(&mut self, add: &[Query], remove: &[Query]) -> Result<()> {
        let mut patch = Vec::new();
        for query in add {
            self.wanted.insert(query.hash(), (query.clone(), self.options.ttl_ms));
            patch.push(put(&query.hash(), query, self.options.ttl_ms));
        }
        for query in remove {
            if self.wanted.remove(&query.hash()).is_some() {
                patch.push(json!({"op": "del", "hash": query.hash()}));
            }
        }
        if self.connection.is_some() {
            self.send(&json!(["changeDesiredQueries", {"desiredQueriesPatch": patch}])).await?;
        }
        Ok(())
    }

    /// Runs a custom mutator on the server; returns the mutation's id.
    pub async fn push(&mut self, name: &str, args: Value) -> Result<u64> {
        let id = self.next_mutation_id;
        self.next_mutation_id += 1;
        let mutation = json!({
            "type": "custom", "id": id, "clientID": self.options.client_id, "name": name, "args": [args], "timestamp": 1_732_200_000_000_u64,
        });
        self.pending.push(mutation.clone());
        if self.connection.is_some() {
            self.send_push(&mutation).await?;
        }
        Ok(id)
    }

    async fn send_push(&mut self, mutation: &Value) -> Result<()> {
        let request = format!("{}-{}", self.options.client_id, mutation["id"]);
        let body = json!({
            "clientGroupID": self.options.client_group_id, "mutations": [mutation], "pushVersion": 1,
            "timestamp": 1_732_200_000_000_u64, "requestID": request,
        });
        self.send(&json!(["push", body])).await
    }

    /// Drops the socket without a close handshake.
    pub fn kill(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.reader.abort();
        }
        let mut store = self.lock();
        store.connection += 1;
        store.open = None;
        store.connected = false;
        store.closed.get_or_insert_with(|| "killed by the client".to_owned());
    }

    /// Closes the socket politely.
    pub async fn close(&mut self) -> Result<()> {
        if let Some(mut connection) = self.connection.take() {
            connection.sink.send(Message::Close(None)).await?;
            let _ = tokio::time::timeout(Duration::from_secs(2), &mut connection.reader).await;
            connection.reader.abort();
        }
        Ok(())
    }

    /// Whether the connection is usable as far as the client knows.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.is_some() && self.lock().closed.is_none()
    }

    pub async fn wait_got(&self, queries: &[Query]) -> Result<()> {
        let hashes: Vec<_> = queries.iter().map(Query::hash).collect();
        self.wait_for("queries to be got", |store| hashes.iter().all(|hash| store.got.contains(hash))).await
    }

    /// Waits up to 30 s for a state between pokes.
    pub async fn wait_for(&self, what: &str, condition: impl FnMut(&Store) -> bool) -> Result<()> {
        self.wait_within(Duration::from_secs(30), what, condition).await
    }

    /// Fails at once on a breach of the protocol, an `error` message, or the end of the connection.
    pub async fn wait_within(
        &self,
        limit: Duration,
        what: &str,
        mut condition: impl FnMut(&Store) -> bool,
    ) -> Result<()> {
        let mut changes = self.changed.subscribe();
        let wait = async {
            loop {
                {
                    let store = self.lock();
                    if let Some(violation) = &store.violation {
                        bail!("the server broke the protocol: {violation}");
                    }
                    if condition(&store) {
                        return Ok(());
                    }
                    if let Some(error) = &store.error {
                        bail!("the server sent an error: {error}");
                    }
                    if let Some(reason) = &store.closed {
                        bail!("the connection ended: {reason}");
                    }
                }
                changes.changed().await.context("the client is alive")?;
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(outcome) => outcome.with_context(|| format!("waiting for {what}")),
            Err(_) => {
                let store = self.lock();
                let transcript: Vec<_> = store.transcript.iter().map(String::as_str).collect();
                Err(anyhow!(
                    "waited {limit:?} for {what}; cookie {:?}, got {:?}; the last messages were\n{}",
                    store.cookie,
                    store.got,
                    transcript.join("\n")
                ))
            }
        }
    }

    /// Waits for the end of the connection and returns the `error` body, if one was sent, and the reason.
    pub async fn wait_closed(&self) -> Result<(Option<Value>, String)> {
        let mut changes = self.changed.subscribe();
        let wait = async {
            loop {
                let store = self.store();
                if let Some(reason) = store.closed {
                    return Ok((store.error, reason));
                }
                changes.changed().await.context("the client is alive")?;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.context("waited 30 s for the connection to end")?
    }

    /// Fails if the server has broken a rule so far.
    pub fn check(&self) -> Result<()> {
        match &self.lock().violation {
            Some(violation) => Err(anyhow!("the server broke the protocol: {violation}")),
            None => Ok(()),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.kill();
    }
}

fn put(hash: &str, query: &Query, ttl: u64) -> Value {
    match query {
        Query::Named { name, args } => json!({"op": "put", "hash": hash, "name": name, "args": args, "ttl": ttl}),
        Query::Ast(ast) => json!({"op": "put", "hash": hash, "ast": ast, "ttl": ttl}),
    }
}

fn primary_keys(schema: &Value) -> BTreeMap<String, Vec<String>> {
    per_table(schema, |table| {
        table["primaryKey"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    })
}

fn columns(schema: &Value) -> BTreeMap<String, Vec<String>> {
    per_table(schema, |table| {
        table["columns"].as_object().into_iter().flat_map(|columns| columns.keys().cloned()).collect()
    })
}

fn per_table(schema: &Value, of: impl Fn(&Value) -> Vec<String>) -> BTreeMap<String, Vec<String>> {
    schema["tables"].as_object().into_iter().flatten().map(|(name, table)| (name.clone(), of(table))).collect()
}

/// The text under which a row is kept: its primary key's values in the order of the client schema.
#[must_use]
pub fn row_key(key: &[String], row: &Row) -> String {
    Value::Array(key.iter().map(|column| row.get(column).cloned().unwrap_or(Value::Null)).collect()).to_string()
}

/// Reads one connection and applies it to the store.
struct Reader {
    store: Arc<Mutex<Store>>,
    changed: Arc<watch::Sender<u64>>,
    keys: BTreeMap<String, Vec<String>>,
    columns: BTreeMap<String, Vec<String>>,
    connection: u64,
}

impl Reader {
    async fn run(self, mut source: SplitStream<Socket>) {
        let reason = loop {
            match source.next().await {
                Some(Ok(Message::Text(text))) => self.take(text.as_str()),
                Some(Ok(Message::Binary(_))) => self.fail("binary frame to a client of protocol 51 or less".to_owned()),
                Some(Ok(Message::Close(frame))) => {
                    break frame.map_or_else(
                        || "close without a code".to_owned(),
                        |f| format!("close {} {}", u16::from(f.code), f.reason),
                    );
                }
                Some(Ok(_)) => {}
                Some(Err(SocketError::ConnectionClosed)) | None => break "end of stream".to_owned(),
                Some(Err(error)) => break format!("{error}"),
            }
        };
        self.with_store(|store| store.closed = Some(reason));
    }

    /// Changes the store unless this connection is over for the client.
    fn with_store(&self, change: impl FnOnce(&mut Store)) {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if store.connection == self.connection {
            change(&mut store);
            drop(store);
            self.changed.send_modify(|count| *count += 1);
        }
    }

    fn fail(&self, violation: String) {
        self.with_store(|store| {
            store.violation.get_or_insert(violation);
        });
    }

    fn take(&self, text: &str) {
        self.with_store(|store| {
            store.record('<', text);
            let outcome = serde_json::from_str::<(String, Value)>(text)
                .map_err(|error| anyhow!("not a [tag, body] array: {error}"))
                .and_then(|(tag, body)| self.message(store, &tag, body).with_context(|| format!("in {tag}")));
            if let Err(error) = outcome {
                store.violation.get_or_insert_with(|| format!("{error:#}"));
            }
        });
    }

    fn message(&self, store: &mut Store, tag: &str, body: Value) -> Result<()> {
        ensure!(store.connected || matches!(tag, "connected" | "error"), "the first message must be `connected`");
        match tag {
            "connected" => {
                ensure!(!store.connected, "a second `connected`");
                ensure!(body["wsid"].is_string(), "no wsid");
                store.connected = true;
            }
            "pong" => store.counts.pongs += 1,
            "error" => store.error = Some(body),
            "transformError" => store.transform_errors.extend(body.as_array().context("not a list")?.iter().cloned()),
            "deleteClients" | "inspect" => {}
            "pokeStart" => {
                ensure!(store.open.is_none(), "a poke is open already");
                let base = optional_text(&body["baseCookie"])?;
                ensure!(base == store.cookie, "base cookie {base:?} but the client is at {:?}", store.cookie);
                store.open = Some(OpenPoke { id: text(&body["pokeID"])?, parts: Vec::new() });
            }
            "pokePart" => {
                let open = store.open.as_mut().context("no poke is open")?;
                ensure!(text(&body["pokeID"])? == open.id, "another poke's ID");
                open.parts.push(body);
            }
            "pokeEnd" => {
                let open = store.open.take().context("no poke is open")?;
                ensure!(text(&body["pokeID"])? == open.id, "another poke's ID");
                if body["cancel"] != json!(true) {
                    self.apply(store, &open.parts, text(&body["cookie"])?)?;
                }
            }
            _ => bail!("unknown tag"),
        }
        Ok(())
    }

    fn apply(&self, store: &mut Store, parts: &[Value], cookie: String) -> Result<()> {
        ensure!(Some(&cookie) >= store.cookie.as_ref(), "cookie {cookie} after {:?}", store.cookie);
        let has_content = parts.iter().any(|part| {
            part.as_object().is_some_and(|fields| {
                fields
                    .iter()
                    .any(|(name, value)| name != "pokeID" && value.as_array().is_none_or(|list| !list.is_empty()))
            })
        });
        ensure!(
            !has_content || Some(&cookie) > store.cookie.as_ref(),
            "content without a new cookie ({cookie}): the client would discard it"
        );
        for part in parts {
            for (client, patch) in part["desiredQueriesPatches"].as_object().into_iter().flatten() {
                patch_set(store.desired.entry(client.clone()).or_default(), patch)?;
            }
            if let patch @ Value::Array(_) = &part["gotQueriesPatch"] {
                patch_set(&mut store.got, patch)?;
            }
            for (client, id) in part["lastMutationIDChanges"].as_object().into_iter().flatten() {
                let id = id.as_u64().context("a last mutation ID that is no number")?;
                let before = store.last_mutation_ids.insert(client.clone(), id).unwrap_or(0);
                ensure!(id >= before, "last mutation ID of {client} went from {before} back to {id}");
            }
            for op in part["mutationsPatch"].as_array().into_iter().flatten() {
                let id = if op["op"] == json!("put") { &op["mutation"]["id"] } else { &op["id"] };
                let key = (text(&id["clientID"])?, id["id"].as_u64().context("a mutation without an id")?);
                match op["op"].as_str() {
                    Some("put") => drop(store.mutation_results.insert(key, op["mutation"]["result"].clone())),
                    Some("del") => drop(store.mutation_results.remove(&key)),
                    _ => bail!("unknown op in mutationsPatch: {op}"),
                }
            }
            for op in part["rowsPatch"].as_array().into_iter().flatten() {
                self.apply_row(store, op)?;
            }
        }
        store.counts.pokes += 1;
        store.cookie = Some(cookie);
        Ok(())
    }

    fn apply_row(&self, store: &mut Store, op: &Value) -> Result<()> {
        let kind = op["op"].as_str().context("a row op without op")?;
        ensure!(kind == "put" || kind == "del", "row op {kind:?}, which would wipe or merge: servers do not send it");
        let table = op["tableName"].as_str().context("a row op without table")?;
        let Some(key) = self.keys.get(table) else { return Ok(()) };
        let row = op[if kind == "put" { "value" } else { "id" }]
            .as_object()
            .with_context(|| format!("{kind} without a row"))?;
        for column in key {
            let value = row.get(column).unwrap_or(&Value::Null);
            ensure!(
                value.is_string() || value.is_number() || value.is_boolean(),
                "{kind} of {table} has no usable primary key column {column}"
            );
        }
        let text = row_key(key, row);
        let rows = store.rows.entry(table.to_owned()).or_default();
        if kind == "put" {
            for column in self.columns.get(table).into_iter().flatten() {
                ensure!(row.contains_key(column), "put of {table} lacks the column {column}");
            }
            store.counts.puts += 1;
            if rows.insert(text, row.clone()).as_ref() == Some(row) {
                store.counts.redundant_puts += 1;
            }
        } else {
            store.counts.deletes += 1;
            if rows.remove(&text).is_none() {
                store.counts.redundant_deletes += 1;
            }
        }
        Ok(())
    }
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("expected text, not {value}"))
}

fn optional_text(value: &Value) -> Result<Option<String>> {
    if value.is_null() { Ok(None) } else { text(value).map(Some) }
}

fn patch_set(set: &mut BTreeSet<String>, patch: &Value) -> Result<()> {
    for op in patch.as_array().context("a patch that is no list")? {
        match op["op"].as_str() {
            Some("put") => drop(set.insert(text(&op["hash"])?)),
            Some("del") => drop(set.remove(&text(&op["hash"])?)),
            Some("clear") => set.clear(),
            _ => bail!("unknown query op {op}"),
        }
    }
    Ok(())
}
