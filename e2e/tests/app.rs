//! The application under test: an issue tracker in Postgres, its client schema, its API server, and a running zero-cache.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::api::{Api, App};
use testkit::client::{Client, Options, Query};
use testkit::oracle::{Snapshot, check_store};
use testkit::postgres::{Database, Postgres, Version};
use testkit::process::ZeroCache;

pub const TABLES: [&str; 6] = ["person", "issue", "comment", "label", "issue_label", "fence"];

pub const TABLES_SQL: &str = "
    CREATE TABLE person (id text PRIMARY KEY, name text NOT NULL, age int);
    CREATE TABLE issue (
        id text PRIMARY KEY, title text NOT NULL, open boolean NOT NULL, rank int NOT NULL,
        owner_id text, created timestamptz NOT NULL DEFAULT '2024-05-06 07:08:09.123Z');
    CREATE TABLE comment (id text PRIMARY KEY, issue_id text NOT NULL, author_id text, body text NOT NULL, pos int NOT NULL);
    CREATE TABLE label (id text PRIMARY KEY, name text NOT NULL);
    CREATE TABLE issue_label (issue_id text, label_id text, PRIMARY KEY (issue_id, label_id));
    CREATE TABLE fence (id int PRIMARY KEY, value int NOT NULL);";

pub const ROWS_SQL: &str = "
    INSERT INTO fence VALUES (1, 0);
    INSERT INTO person SELECT 'p' || n, 'Person ' || n, CASE WHEN n % 3 > 0 THEN 20 + n END FROM generate_series(1, 6) n;
    INSERT INTO issue SELECT 'i' || n, 'Issue ' || n, n % 3 > 0, n % 7, CASE WHEN n % 4 > 0 THEN 'p' || (n % 6 + 1) END
        FROM generate_series(1, 30) n;
    INSERT INTO comment SELECT 'c' || n, 'i' || (n % 20 + 1), CASE WHEN n % 5 > 0 THEN 'p' || (n % 6 + 1) END, 'Body ' || n, n
        FROM generate_series(1, 60) n;
    INSERT INTO label SELECT 'l' || n, 'label ' || n FROM generate_series(1, 4) n;
    INSERT INTO issue_label SELECT 'i' || n, 'l' || (n % 4 + 1) FROM generate_series(1, 30) n WHERE n % 3 > 0;";

/// A database, an API server and a zero-cache of one test.
pub struct Site {
    pub database: Database<'static>,
    pub api: Api,
    pub server: ZeroCache,
}

impl Site {
    /// Everything prepared, the server not started.
    pub async fn prepare(test: &str) -> Result<Site> {
        Self::prepare_on(test, Version::V15, &format!("{TABLES_SQL}{ROWS_SQL}")).await
    }

    pub async fn prepare_on(test: &str, version: Version, sql: &str) -> Result<Site> {
        let database = Postgres::shared(version)?.create_database(test).await?;
        database.execute(sql).await?;
        let api = Api::start(app(&database.url())).await?;
        let server = server(&database, &api)?;
        Ok(Site { database, api, server })
    }

    pub async fn start(test: &str) -> Result<Site> {
        let mut site = Self::prepare(test).await?;
        site.server.start()?;
        Ok(site)
    }

    pub fn options(&self) -> Options {
        Options::new(self.server.port(), client_schema())
    }

    /// A fresh client in a fresh group, with its queries got.
    pub async fn client(&self, queries: &[Query]) -> Result<Client> {
        Client::start(self.options(), queries).await
    }

    /// Writes to the fence and waits until the client has seen it: it has then seen all commits before. The client must want
    /// [`fence`].
    pub async fn settle(&self, clients: &[&Client]) -> Result<()> {
        let upstream = self.database.connect().await?;
        let value: i32 =
            upstream.query_one("UPDATE fence SET value = value + 1 WHERE id = 1 RETURNING value", &[]).await?.get(0);
        for client in clients {
            client
                .wait_for("the fence", |store| {
                    store
                        .rows
                        .get("fence")
                        .and_then(|rows| rows.get("[1]"))
                        .is_some_and(|row| row["value"] == json!(value))
                })
                .await?;
        }
        Ok(())
    }

    /// Waits for all commits so far and compares the client's rows with Postgres.
    pub async fn check(&self, client: &Client) -> Result<()> {
        let wanted: Vec<_> = client.wanted().cloned().collect();
        client.wait_got(&wanted).await?;
        self.settle(&[client]).await?;
        let snapshot = self.snapshot().await?;
        check_store(&snapshot, &client.store(), &asts(&wanted), &client_schema())?;
        client.check()
    }

    pub async fn snapshot(&self) -> Result<Snapshot> {
        Snapshot::read(&mut self.database.connect().await?, &TABLES).await
    }
}

pub fn server(database: &Database, api: &Api) -> Result<ZeroCache> {
    Ok(ZeroCache::new(&database.url())?
        .env("ZERO_QUERY_URL", &api.query_url())
        .env("ZERO_MUTATE_URL", &api.mutate_url()))
}

/// Named queries of the application: `any` runs the AST given as its argument, `refused` is an application error. The mutator
/// `count` shows whether each mutation ran exactly once.
pub fn app(upstream: &str) -> App {
    App::default()
        .upstream(upstream)
        .query("any", |args| args.get(0).cloned().ok_or_else(|| "no AST".to_owned()))
        .query("refused", |_| Err("not allowed".to_owned()))
        .mutator("count", |_| {
            Ok("INSERT INTO fence VALUES (2, 1) ON CONFLICT (id) DO UPDATE SET value = fence.value + 1".to_owned())
        })
        .mutator("rename", |args| match (args["id"].as_str(), args["title"].as_str()) {
            (Some(id), Some(title)) if !title.contains("forbidden") && !title.contains('\'') => {
                Ok(format!("UPDATE issue SET title = '{title}' WHERE id = '{id}'"))
            }
            _ => Err("title is forbidden".to_owned()),
        })
}

/// A named query for an AST.
pub fn query(ast: Value) -> Query {
    Query::named("any", json!([ast]))
}

pub fn fence() -> Query {
    query(json!({"table": "fence"}))
}

pub fn asts(queries: &[Query]) -> Vec<Value> {
    testkit::oracle::asts(queries.iter(), |_, args| args[0].clone())
}

pub fn client_schema() -> Value {
    let table = |columns: &[(&str, &str)], key: &[&str]| {
        let columns: serde_json::Map<_, _> =
            columns.iter().map(|(name, of)| ((*name).to_owned(), json!({"type": of}))).collect();
        json!({"columns": columns, "primaryKey": key})
    };
    json!({"tables": {
        "comment": table(&[("author_id", "string"), ("body", "string"), ("id", "string"), ("issue_id", "string"), ("pos", "number")], &["id"]),
        "fence": table(&[("id", "number"), ("value", "number")], &["id"]),
        "issue": table(
            &[("created", "number"), ("id", "string"), ("open", "boolean"), ("owner_id", "string"), ("rank", "number"), ("title", "string")],
            &["id"],
        ),
        "issue_label": table(&[("issue_id", "string"), ("label_id", "string")], &["issue_id", "label_id"]),
        "label": table(&[("id", "string"), ("name", "string")], &["id"]),
        "person": table(&[("age", "number"), ("id", "string"), ("name", "string")], &["id"]),
    }})
}

/// `column op literal`
pub fn cmp(column: &str, op: &str, value: Value) -> Value {
    json!({"type": "simple", "left": {"type": "column", "name": column}, "right": {"type": "literal", "value": value}, "op": op})
}

pub fn all_issues() -> Query {
    query(json!({"table": "issue", "orderBy": [["id", "asc"]]}))
}

/// How often a node has copied the upstream database, by its log.
pub fn copies(log: &str) -> usize {
    log.matches("initial copy complete").count()
}

/// Fails with the log's end, which the caller would want to see.
pub fn with_log<T>(result: Result<T>, server: &ZeroCache) -> Result<T> {
    result.with_context(|| {
        let log = server.last_log();
        let lines: Vec<_> = log.lines().collect();
        format!("the server's log ends:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    })
}
