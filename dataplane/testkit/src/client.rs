//! A scripted client of the sync protocol. It applies pokes to a map as the published client does, and reports every breach of
//! the poke rules as an error instead of tolerating it.
//!
//! One [`Client`] is one tab: it keeps its store (rows, cookie, desired and got queries) across reconnects, like the real
//! client's storage, and sends on a new connection what the server does not know yet.

mod reader;
mod store;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use futures_util::stream::SplitSink;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use self::reader::Reader;
pub use self::store::{Counts, Row, Store, Tables, row_key};
pub use self::watch::Watch;

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
    /// Table and column of a number that only grows in Postgres: a row that shows a smaller one than before breaks the order.
    pub rising: Option<(String, String)>,
    /// All tabs of the group, shared between siblings: servers forget clients that `activeClients` does not name.
    active_clients: Arc<Mutex<BTreeSet<String>>>,
    /// HTTP cookies by name, as a browser keeps them for all its tabs: proxies find a group's node by them.
    cookies: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Options {
    /// A fresh client in a fresh group.
    #[must_use]
    pub fn new(port: u16, client_schema: Value) -> Options {
        let client_id = random_id();
        Options {
            active_clients: Arc::new(Mutex::new(BTreeSet::from([client_id.clone()]))),
            cookies: Arc::default(),
            address: format!("127.0.0.1:{port}"),
            protocol_version: 51,
            client_group_id: random_id(),
            client_id,
            user_id: Some("u1".to_owned()),
            auth_token: None,
            client_schema,
            init_in_header: true,
            ttl_ms: 300_000,
            rising: None,
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
type Socket = WebSocketStream<TcpStream>;

/// One scripted tab.
#[derive(Debug)]
pub struct Client {
    pub options: Options,
    wanted: BTreeMap<String, (Query, u64)>,
    pending: Vec<Value>,
    next_mutation_id: u64,
    watch: Watch,
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
            watch: Watch::new(),
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

    /// A way to look at the store while somebody else drives the client.
    #[must_use]
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// The store as it is now.
    #[must_use]
    pub fn store(&self) -> Store {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.watch.lock()
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
        let cookies = self.http_cookies();
        if !cookies.is_empty() {
            request.headers_mut().insert("Cookie", cookies.parse()?);
        }
        let stream =
            TcpStream::connect(&options.address).await.with_context(|| format!("connect to {}", options.address))?;
        stream.set_nodelay(true)?;
        let (socket, answer) =
            tokio_tungstenite::client_async(request, stream).await.context("upgrade to a WebSocket")?;
        for cookie in answer.headers().get_all("Set-Cookie") {
            let pair = cookie.to_str()?.split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                let mut cookies = options.cookies.lock().unwrap_or_else(PoisonError::into_inner);
                cookies.insert(name.trim().to_owned(), value.trim().to_owned());
            }
        }
        Ok(socket)
    }

    /// What a browser would send as the header `Cookie`.
    #[must_use]
    pub fn http_cookies(&self) -> String {
        let cookies = self.options.cookies.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("; ")
    }

    fn adopt(&mut self, socket: Socket) {
        let (sink, source) = socket.split();
        let reader = Reader::new(self.watch.clone(), &self.options);
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
        self.mutate("custom", name, args).await
    }

    /// Has operations carried out by the server itself; returns the mutation's id.
    pub async fn push_crud(&mut self, ops: Value) -> Result<u64> {
        self.mutate("crud", "_zero_crud", json!({"ops": ops})).await
    }

    async fn mutate(&mut self, kind: &str, name: &str, args: Value) -> Result<u64> {
        let id = self.next_mutation_id;
        self.next_mutation_id += 1;
        let mutation = json!({
            "type": kind, "id": id, "clientID": self.options.client_id, "name": name, "args": [args], "timestamp": 1_732_200_000_000_u64,
        });
        self.pending.push(mutation.clone());
        if self.connection.is_some() {
            self.send_push(&mutation).await?;
        }
        Ok(id)
    }

    /// Like [`Client::push`]; what cannot be sent now goes out with the next connection.
    pub async fn push_or_keep(&mut self, name: &str, args: Value) -> Result<u64> {
        let id = self.next_mutation_id;
        match self.push(name, args).await {
            Ok(id) => Ok(id),
            Err(_) if self.next_mutation_id > id => Ok(id),
            Err(error) => Err(error),
        }
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
        let waited = self.watch.wait(limit, what, |store| {
            if condition(store) {
                return Ok(Some(()));
            }
            if let Some(error) = &store.error {
                bail!("the server sent an error: {error}");
            }
            if let Some(reason) = &store.closed {
                bail!("the connection ended: {reason}");
            }
            Ok(None)
        });
        waited.await
    }

    /// Waits for the end of the connection and returns the `error` body, if one was sent, and the reason.
    pub async fn wait_closed(&self) -> Result<(Option<Value>, String)> {
        let closed = tokio::time::timeout(Duration::from_secs(30), self.watch.closed());
        closed.await.context("waited 30 s for the connection to end")
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
