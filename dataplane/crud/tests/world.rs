//! A database that is set up for an application, and somebody who writes to it.

use std::sync::atomic::{AtomicI64, Ordering};

use crud::{Metrics, Options, Outcome, Request, Writer};
use protocol::crud::CrudOp;
use protocol::up::UpMessage;
use serde_json::{Map, Value, json};
use testkit::postgres::{Database, Postgres, Version};
use tokio_postgres::Client;
use upstream::{App, initial_copy};

pub struct World {
    pub database: Database<'static>,
    pub sql: Client,
    pub writer: Writer,
    pub next: AtomicI64,
}

/// Everybody may do everything with these tables.
pub fn open(tables: &[&str]) -> Value {
    let rules = |table: &&str| ((*table).to_owned(), json!({"row": anyone()}));
    json!({"tables": tables.iter().map(rules).collect::<Map<_, _>>()})
}

pub fn anyone() -> Value {
    let yes = json!([["allow", {"type": "and", "conditions": []}]]);
    json!({"insert": yes, "update": {"preMutation": yes, "postMutation": yes}, "delete": yes})
}

impl World {
    pub async fn new(test: &str, setup: &str, permissions: &Value) -> World {
        World::with(test, setup, permissions, |options| options).await
    }

    pub async fn with(test: &str, setup: &str, permissions: &Value, change: impl FnOnce(Options) -> Options) -> World {
        let database = Postgres::shared(Version::V15).unwrap().create_database(test).await.unwrap();
        let sql = database.connect().await.unwrap();
        sql.batch_execute(setup).await.unwrap_or_else(|e| panic!("{setup}: {:?}", e.as_db_error()));
        let (address, app) = (database.url().parse::<upstream::Address>().unwrap(), App::new("zero", 0).unwrap());
        let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
        let set_up = upstream::Options::new(address.clone(), app.clone());
        let (copied, ()) =
            tokio::join!(initial_copy(&set_up, sender), async { while receiver.recv().await.is_some() {} });
        copied.unwrap();
        // Only the set-up is wanted.
        let drop =
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()";
        sql.batch_execute(drop).await.unwrap();
        let options = change(Options { address, app, connections_max: 8, has_custom: false });
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let world = World { database, sql, writer: Writer::new(options, metrics), next: AtomicI64::new(1) };
        world.deploy(permissions).await;
        world
    }

    pub async fn deploy(&self, permissions: &Value) {
        self.run(&format!(
            "UPDATE zero.permissions SET permissions = '{}'",
            permissions.to_string().replace('\'', "''")
        ))
        .await;
    }

    pub async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {:?}", e.as_db_error()));
    }

    /// One value, as text.
    pub async fn ask(&self, sql: &str) -> Option<String> {
        let rows = self.sql.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {:?}", e.as_db_error()));
        rows.into_iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        })?
    }

    pub async fn number(&self, client: &str) -> i64 {
        let sql = format!("SELECT \"lastMutationID\" FROM zero_0.clients WHERE \"clientID\" = '{client}'");
        self.ask(&sql).await.map_or(0, |text| text.parse().unwrap())
    }

    /// The next mutation of client `c`, by somebody without a token.
    pub async fn apply(&self, ops: &Value) -> Outcome {
        self.apply_as(&json!(null), ops).await
    }

    pub async fn apply_as(&self, claims: &Value, ops: &Value) -> Outcome {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.apply_numbered("c", id, claims, ops).await
    }

    pub async fn apply_numbered(&self, client: &str, id: i64, claims: &Value, ops: &Value) -> Outcome {
        let ops = parse(ops).unwrap();
        let request = Request { group: "g", client, id, ops: &ops, claims: claims.as_object() };
        self.writer.apply(&request).await
    }
}

pub fn parse(ops: &Value) -> Result<Vec<CrudOp>, protocol::ParseError> {
    let mutation =
        json!({"type": "crud", "id": 1, "clientID": "c", "name": "_zero_crud", "args": [{"ops": ops}], "timestamp": 1});
    let push = json!(["push", {"clientGroupID": "g", "mutations": [mutation], "pushVersion": 1, "timestamp": 1, "requestID": "r"}]);
    let UpMessage::Push(push) = UpMessage::parse(&push.to_string()).unwrap() else { panic!() };
    push.mutations[0].crud_ops()
}

/// An operation on the table `t` with the key `id`.
pub fn op(kind: &str, value: Value) -> Value {
    op_on("t", kind, value)
}

pub fn op_on(table: &str, kind: &str, value: Value) -> Value {
    json!({"op": kind, "tableName": table, "primaryKey": ["id"], "value": value})
}
