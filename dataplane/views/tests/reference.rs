//! What Rocicorp's server leaves of client groups in the CVR database, in the shape of its releases 1.0 (16) to 1.9 (17).

use serde_json::{Value as Json, json};
use tokio_postgres::Client;

use crate::client::Store;
use crate::data::{Keys, client_schema};
use crate::world::World;

/// Its tables, as far as anything here or there depends on them.
const TABLES: &str = r#"
    CREATE SCHEMA IF NOT EXISTS {s};
    CREATE TABLE {s}."versionHistory" ("dataVersion" int NOT NULL, "schemaVersion" int NOT NULL, "minSafeVersion" int NOT NULL,
        lock char(1) NOT NULL DEFAULT 'v' PRIMARY KEY CHECK (lock = 'v'));
    CREATE TABLE {s}.instances ("clientGroupID" text PRIMARY KEY, version text NOT NULL, "lastActive" timestamptz NOT NULL,
        "ttlClock" double precision NOT NULL DEFAULT 0, "replicaVersion" text, owner text, "grantedAt" timestamptz,
        "clientSchema" jsonb, "profileID" text, deleted bool DEFAULT false);
    CREATE TABLE {s}.clients ("clientGroupID" text REFERENCES {s}.instances ON DELETE CASCADE, "clientID" text,
        PRIMARY KEY ("clientGroupID", "clientID"));
    CREATE TABLE {s}.queries ("clientGroupID" text REFERENCES {s}.instances ON DELETE CASCADE, "queryHash" text, "clientAST" jsonb,
        "queryName" text, "queryArgs" json, "patchVersion" text, "transformationHash" text, "transformationVersion" text,
        internal bool, deleted bool, PRIMARY KEY ("clientGroupID", "queryHash"));
    CREATE TABLE {s}.desires ("clientGroupID" text, "clientID" text, "queryHash" text, "patchVersion" text NOT NULL, deleted bool,
        ttl interval, "ttlMs" double precision, "inactivatedAt" timestamptz, "inactivatedAtMs" double precision,
        PRIMARY KEY ("clientGroupID", "clientID", "queryHash"),
        FOREIGN KEY ("clientGroupID", "queryHash") REFERENCES {s}.queries ON DELETE CASCADE);
    CREATE TABLE {s}."rowsVersion" ("clientGroupID" text PRIMARY KEY, version text NOT NULL);
    CREATE TABLE {s}.rows ("clientGroupID" text REFERENCES {s}."rowsVersion" ON DELETE CASCADE, schema text, "table" text,
        "rowKey" jsonb, "rowVersion" text NOT NULL, "patchVersion" text NOT NULL, "refCounts" jsonb,
        PRIMARY KEY ("clientGroupID", schema, "table", "rowKey"));
"#;

/// Its tables beside those of a world.
pub struct Reference {
    client: Client,
    schema: String,
}

impl Reference {
    pub async fn beside(world: &World, shape: i32) -> Reference {
        let reference = Reference { client: world.cvr().await, schema: format!("\"{}\"", world.cvr_schema) };
        reference.run(TABLES).await;
        if shape > 16 {
            reference.run(r#"ALTER TABLE {s}.queries ADD "rowSetSignature" text"#).await;
        }
        reference.run(&format!(r#"INSERT INTO {{s}}."versionHistory" VALUES ({shape}, {shape}, 3)"#)).await;
        reference
    }

    /// Statements with `{s}` for the schema.
    pub async fn run(&self, text: &str) {
        self.client.batch_execute(&text.replace("{s}", &self.schema)).await.unwrap();
    }

    pub async fn text(&self, query: &str) -> Option<String> {
        let rows = self.client.query(&query.replace("{s}", &self.schema), &[]).await.unwrap();
        rows.first().and_then(|row| row.get(0))
    }

    async fn insert(&self, table: &str, row: &Json) {
        let text = format!(
            r#"INSERT INTO {}."{table}" SELECT (jsonb_populate_record(NULL::{0}."{table}", $1)).*"#,
            self.schema
        );
        self.client.execute_typed(&text, &[(row, tokio_postgres::types::Type::JSONB)]).await.unwrap();
    }

    /// A group whose newest cookie is `version`, with clients `c1` and `c2`.
    pub async fn group(&self, group: &str, version: &str) {
        self.group_by(group, version, Keys::Usual).await;
    }

    pub async fn group_by(&self, group: &str, version: &str, keys: Keys) {
        let instance = json!({"clientGroupID": group, "version": version, "lastActive": "2026-01-01T00:00:00Z", "ttlClock": 1000.5,
            "replicaVersion": "01", "owner": "a task", "grantedAt": "2026-01-01T00:00:00Z", "clientSchema": client_schema(keys),
            "profileID": "p", "deleted": false});
        self.insert("instances", &instance).await;
        for client in ["c1", "c2"] {
            self.insert("clients", &json!({"clientGroupID": group, "clientID": client})).await;
        }
        self.insert("rowsVersion", &json!({"clientGroupID": group, "version": version})).await;
        let internal = json!({"clientGroupID": group, "queryHash": "lmids", "clientAST": {"schema": "", "table": "zero_0.clients"},
            "internal": true});
        self.insert("queries", &internal).await;
        self.row(group, "zero_0.clients", json!({"clientGroupID": group, "clientID": "c1"}), version, true).await;
    }

    /// A named query that clients got with a cookie, and that `c1` desires.
    pub async fn query(&self, group: &str, name: &str, got: &str) {
        self.query_with(group, name, json!({"patchVersion": got})).await;
        self.desire(group, "c1", name, json!({"patchVersion": got, "ttlMs": 300_000})).await;
    }

    pub async fn query_with(&self, group: &str, name: &str, more: Json) {
        let query = json!({"clientGroupID": group, "queryHash": name, "queryName": name, "queryArgs": []});
        self.insert("queries", &with(query, more)).await;
    }

    pub async fn desire(&self, group: &str, client: &str, name: &str, more: Json) {
        self.insert("desires", &with(json!({"clientGroupID": group, "clientID": client, "queryHash": name}), more))
            .await;
    }

    /// A row that clients hold since a cookie, or do not hold any more since then.
    pub async fn row(&self, group: &str, table: &str, key: Json, since: &str, is_held: bool) {
        let counts = if is_held { json!({"q": 1}) } else { Json::Null };
        let row = json!({"clientGroupID": group, "schema": "", "table": table, "rowKey": key, "rowVersion": "01",
            "patchVersion": since, "refCounts": counts});
        self.insert("rows", &row).await;
    }

    pub async fn is_tombstone(&self, group: &str) -> bool {
        let text = format!(
            "SELECT version || deleted || (owner IS NULL) FROM {{s}}.instances WHERE \"clientGroupID\" = '{group}'"
        );
        self.text(&text).await.as_deref() == Some("00truetrue")
    }
}

fn with(mut row: Json, more: Json) -> Json {
    let Json::Object(more) = more else { panic!("no object") };
    row.as_object_mut().unwrap().extend(more);
    row
}

/// What a client of its holds: rows by table and key text, and queries that it got and desires.
pub fn store(cookie: &str, queries: &[&str], rows: &[(&str, &str, Json)]) -> Store {
    let queries = || queries.iter().map(|q| (*q).to_owned()).collect();
    Store {
        cookie: Some(cookie.into()),
        rows: rows.iter().map(|(table, key, row)| (((*table).into(), (*key).into()), row.clone())).collect(),
        got: queries(),
        desired: [("c1".to_owned(), queries())].into(),
        ..Store::default()
    }
}
