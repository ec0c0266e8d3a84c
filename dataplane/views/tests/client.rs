//! A scripted connection: collects frames, applies pokes to a map as the published client does, and fails on any poke that the
//! published client would refuse (sync-protocol 3.4).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::up::{UpMessage, UpQueryOp};
use serde_json::{Value as Json, json};
use tokio::time::{Instant, timeout};
use views::api::{ClientMessage, Command, ConnectionContext, ConnectionId, Credit, Frame, Handle, OutboxReceiver};

use crate::data::{Keys, client_key};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a client's database holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Store {
    pub cookie: Option<String>,
    /// Rows by table and key text.
    pub rows: BTreeMap<(String, String), Json>,
    pub got: BTreeSet<String>,
    pub desired: BTreeMap<String, BTreeSet<String>>,
    pub lmids: BTreeMap<String, i64>,
    pub mutations: BTreeMap<(String, i64), Json>,
}

/// One complete poke.
#[derive(Clone, Debug)]
pub struct Poke {
    pub base: Option<String>,
    pub cookie: String,
    pub parts: Vec<Json>,
    keys: Keys,
}

impl Poke {
    fn ops(&self, field: &str) -> Vec<Json> {
        self.parts.iter().filter_map(|p| p[field].as_array()).flatten().cloned().collect()
    }

    pub fn rows(&self) -> Vec<Json> {
        self.ops("rowsPatch")
    }

    /// Keys of the row operations of a kind, sorted, `table/key`.
    pub fn keys(&self, op: &str) -> Vec<String> {
        let mut keys: Vec<String> = self
            .rows()
            .iter()
            .filter(|r| r["op"] == op)
            .map(|r| {
                let table = r["tableName"].as_str().unwrap();
                format!("{table}/{}", key_text(self.keys, table, if op == "put" { &r["value"] } else { &r["id"] }))
            })
            .collect();
        keys.sort();
        keys
    }

    pub fn got(&self) -> Vec<Json> {
        self.ops("gotQueriesPatch")
    }

    pub fn mutations(&self) -> Vec<Json> {
        self.ops("mutationsPatch")
    }

    pub fn lmids(&self) -> BTreeMap<String, i64> {
        self.parts
            .iter()
            .filter_map(|p| p["lastMutationIDChanges"].as_object())
            .flatten()
            .map(|(client, id)| (client.clone(), id.as_i64().unwrap()))
            .collect()
    }

    pub fn desired(&self, client: &str) -> Vec<Json> {
        self.parts.iter().filter_map(|p| p["desiredQueriesPatches"][client].as_array()).flatten().cloned().collect()
    }
}

#[derive(Clone, Debug)]
pub enum Seen {
    Poke(Poke),
    /// Any message that is no part of a poke.
    Message(String, Json),
    Close(Option<(u16, String)>),
}

pub struct Client {
    pub handle: Handle,
    pub connection: ConnectionId,
    pub id: String,
    pub group: String,
    /// Of its schema.
    pub keys: Keys,
    /// Rows of `acct` are shown to their owner only.
    pub user: Option<String>,
    pub store: Store,
    /// The store as it was after each poke, the first element before any: cookies the client legitimately held.
    pub past: Vec<Store>,
    pub outbox: OutboxReceiver,
    pub open: Option<Poke>,
    pub open_id: Option<String>,
    pub log: Vec<Seen>,
    /// Looks at every message.
    pub watch: Option<Watch>,
}

/// Is shown a message.
pub type Watch = Box<dyn Fn(&Json) + Send>;

pub fn key_text(keys: Keys, table: &str, row: &Json) -> String {
    client_key(table, keys).iter().map(|c| row[c].to_string()).collect::<Vec<_>>().join(",")
}

pub fn put(hash: &str, ttl: i64) -> Json {
    json!({"op": "put", "hash": hash, "name": hash, "args": [], "ttl": ttl})
}

pub fn del(hash: &str) -> Json {
    json!({"op": "del", "hash": hash})
}

pub fn parse_init(body: &Json) -> Box<protocol::up::InitConnection> {
    match UpMessage::parse(&json!(["initConnection", body]).to_string()).unwrap() {
        UpMessage::InitConnection(body) => body,
        other => panic!("{other:?}"),
    }
}

impl Client {
    pub fn change(&self, patch: Json) {
        let text = json!(["changeDesiredQueries", {"desiredQueriesPatch": patch}]).to_string();
        let UpMessage::ChangeDesiredQueries(body) = UpMessage::parse(&text).unwrap() else { panic!("{text}") };
        self.message(ClientMessage::ChangeDesiredQueries(body));
    }

    pub fn desire(&self, ops: Vec<UpQueryOp>) {
        self.message(ClientMessage::ChangeDesiredQueries(Box::new(protocol::up::ChangeDesiredQueries {
            desired_queries_patch: ops,
            traceparent: None,
        })));
    }

    pub fn delete_clients(&self, clients: &[&str]) {
        self.message(ClientMessage::DeleteClients(protocol::up::DeleteClients {
            client_ids: clients.iter().map(|c| (*c).to_owned()).collect(),
            client_group_ids: vec![],
        }));
    }

    pub fn update_auth(&self, context: ConnectionContext) {
        self.message(ClientMessage::UpdateAuth(context.into()));
    }

    pub fn init(&self, body: &Json, context: ConnectionContext) {
        self.message(ClientMessage::InitConnection { body: parse_init(body), context: context.into() });
    }

    fn message(&self, message: ClientMessage) {
        let _ = self.handle.commands.send(Command::Message(self.connection, message, Credit::default()));
    }

    /// The socket is cut; what was not applied is lost.
    pub fn cut(self) -> Store {
        let _ = self.handle.commands.send(Command::Disconnect(self.connection));
        self.store
    }

    /// The next complete poke, message or close.
    pub async fn next(&mut self) -> Seen {
        self.next_within(PATIENCE).await.unwrap_or_else(|| {
            panic!("nothing came for {} of {} at {:?}; log {:?}", self.id, self.group, self.store.cookie, self.log)
        })
    }

    pub async fn next_within(&mut self, patience: Duration) -> Option<Seen> {
        let until = Instant::now() + patience;
        loop {
            let frame = timeout(until.saturating_duration_since(Instant::now()), self.outbox.recv()).await.ok()?;
            let Some(frame) = frame else {
                assert!(matches!(self.log.last(), Some(Seen::Close(_))), "the outbox was dropped without a close");
                return None;
            };
            self.outbox.sent(&frame);
            if let Some(seen) = self.frame(frame) {
                self.log.push(seen.clone());
                return Some(seen);
            }
        }
    }

    fn frame(&mut self, frame: Frame) -> Option<Seen> {
        let text = match frame {
            Frame::Close(status) => return Some(Seen::Close(status)),
            Frame::Text(bytes) => bytes.to_vec(),
            Frame::Parts(parts) => parts.iter().flat_map(|part| part.read().unwrap()).collect(),
        };
        let message: Json = serde_json::from_slice(&text).unwrap();
        if let Some(watch) = &self.watch {
            watch(&message);
        }
        let (tag, body) = (message[0].as_str().unwrap(), message[1].clone());
        let id = body["pokeID"].as_str().map(str::to_owned);
        match tag {
            "pokeStart" => {
                assert!(self.open.is_none(), "a poke was open when another started");
                let base = body["baseCookie"].as_str().map(str::to_owned);
                assert_eq!(base, self.store.cookie, "a poke starts where the client is");
                self.open = Some(Poke { base, cookie: String::new(), parts: vec![], keys: self.keys });
                self.open_id = id;
                None
            }
            "pokePart" => {
                assert_eq!(self.open_id, id, "a part belongs to the open poke");
                self.open.as_mut().expect("a part follows its start").parts.push(body);
                None
            }
            "pokeEnd" => {
                assert_eq!(self.open_id.take(), id, "an end belongs to the open poke");
                let mut poke = self.open.take().expect("an end follows its start");
                poke.cookie = body["cookie"].as_str().unwrap().to_owned();
                self.apply(&poke);
                Some(Seen::Poke(poke))
            }
            _ => Some(Seen::Message(tag.to_owned(), body)),
        }
    }

    fn apply(&mut self, poke: &Poke) {
        if let Some(base) = &poke.base {
            assert!(*base <= poke.cookie, "cookies ascend: {base} then {}", poke.cookie);
            if *base == poke.cookie {
                assert!(poke.parts.is_empty(), "content under an equal cookie is lost: {poke:?}");
            }
        }
        let (keys, store) = (self.keys, &mut self.store);
        store.cookie = Some(poke.cookie.clone());
        for part in &poke.parts {
            for (client, id) in part["lastMutationIDChanges"].as_object().into_iter().flatten() {
                let id = id.as_i64().unwrap();
                let before = store.lmids.insert(client.clone(), id).unwrap_or(0);
                assert!(before <= id, "the last mutation id went back from {before} to {id}");
            }
            for (client, ops) in part["desiredQueriesPatches"].as_object().into_iter().flatten() {
                let set = store.desired.entry(client.clone()).or_default();
                for op in ops.as_array().unwrap() {
                    query_op(set, op);
                }
            }
            for op in part["gotQueriesPatch"].as_array().into_iter().flatten() {
                query_op(&mut store.got, op);
            }
            for op in part["mutationsPatch"].as_array().into_iter().flatten() {
                let key = |id: &Json| (id["clientID"].as_str().unwrap().to_owned(), id["id"].as_i64().unwrap());
                if op["op"] == "put" {
                    store.mutations.insert(key(&op["mutation"]["id"]), op["mutation"]["result"].clone());
                } else {
                    store.mutations.remove(&key(&op["id"]));
                }
            }
            for op in part["rowsPatch"].as_array().into_iter().flatten() {
                let table = op["tableName"].as_str().unwrap();
                if op["op"] == "put" {
                    if let ("acct", Some(user)) = (table, &self.user) {
                        assert_eq!(op["value"]["owner"], *user, "{user} is sent the row of another");
                    }
                    let key = (table.to_owned(), key_text(keys, table, &op["value"]));
                    store.rows.insert(key, op["value"].clone());
                } else {
                    assert_eq!(op["op"], "del");
                    let columns = op["id"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
                    assert_eq!(
                        columns,
                        client_key(table, keys).iter().map(|c| (*c).to_owned()).collect(),
                        "the client's key"
                    );
                    store.rows.remove(&(table.to_owned(), key_text(keys, table, &op["id"])));
                }
            }
        }
        self.past.push(self.store.clone());
    }

    /// The next event, which must be a poke.
    pub async fn poke(&mut self) -> Poke {
        match self.next().await {
            Seen::Poke(poke) => poke,
            other => panic!("instead of a poke: {other:?}"),
        }
    }

    /// Takes pokes until the store is as wanted. Returns them.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Store) -> bool) -> Vec<Poke> {
        let mut pokes = Vec::new();
        let until = Instant::now() + PATIENCE;
        while !wanted(&self.store) {
            match self.next_within(until.saturating_duration_since(Instant::now())).await {
                Some(Seen::Poke(poke)) => pokes.push(poke),
                Some(other) => panic!("{} waits for {what}, got {other:?}", self.id),
                None => panic!("{} waits in vain for {what}: {:#?}", self.id, self.store),
            }
        }
        pokes
    }

    /// Takes what comes within `time`.
    pub async fn drain(&mut self, time: Duration) -> Vec<Seen> {
        let until = Instant::now() + time;
        let mut seen = Vec::new();
        while let Some(one) = self.next_within(until.saturating_duration_since(Instant::now())).await {
            seen.push(one);
        }
        seen
    }

    /// Nothing comes within `time`.
    pub async fn silent(&mut self, time: Duration) {
        let seen = self.drain(time).await;
        assert!(seen.is_empty(), "{} got {seen:?}", self.id);
    }

    /// The next event must be an error message, followed by a close. Returns the error and the close.
    pub async fn refused(&mut self) -> (Json, Option<(u16, String)>) {
        let error = match self.next().await {
            Seen::Message(tag, body) if tag == "error" => body,
            other => panic!("instead of an error: {other:?}"),
        };
        match self.next().await {
            Seen::Close(status) => (error, status),
            other => panic!("instead of a close: {other:?}"),
        }
    }

    pub async fn message_of(&mut self, tag: &str) -> Json {
        loop {
            match self.next().await {
                Seen::Message(t, body) if t == tag => return body,
                Seen::Poke(_) => {}
                other => panic!("instead of {tag}: {other:?}"),
            }
        }
    }
}

fn query_op(set: &mut BTreeSet<String>, op: &Json) {
    let hash = op["hash"].as_str().unwrap();
    if op["op"] == "put" {
        set.insert(hash.to_owned());
    } else {
        set.remove(hash);
    }
}
