//! A replica in memory: the simplest thing that applies a copy and transactions, to be compared with another copy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rows::transaction::{Backfill, SchemaChange};
use rows::{Cell, Change, TableSpec, Transaction, Version};
use testkit::postgres::{Postgres, Version as Server};
use tokio::sync::mpsc;
use tokio_postgres::Client;
use upstream::{App, CopyMessage, CopyPlan, Event, Options, Resume, Stream, initial_copy};

pub type Row = Vec<Cell>;

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub tables: BTreeMap<u32, (Arc<TableSpec>, Vec<Row>)>,
    pub version: Version,
    /// Of the copy that it began with.
    pub initial: Version,
    /// Rows may have been left out, so a change may be the first that is heard of one.
    pub lacks_rows: bool,
    /// Of the transaction at `version`.
    pub commit_time_us: Option<i64>,
}

/// A server with one database, and the options of an application in it.
pub struct Fixture {
    pub postgres: Postgres,
    pub client: Client,
    pub options: Options,
}

impl Fixture {
    pub async fn start(setup: &str) -> Fixture {
        Fixture::on(Server::V15, setup).await
    }

    pub async fn on(server: Server, setup: &str) -> Fixture {
        let postgres = Postgres::start(server).unwrap();
        let client = postgres.connect("postgres").await.unwrap();
        client.batch_execute(setup).await.unwrap();
        let options = options(&postgres, "zero");
        Fixture { postgres, client, options }
    }

    pub async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {:?}", e.as_db_error()));
    }
}

pub fn options(postgres: &Postgres, app: &str) -> Options {
    Options::new(postgres.url("postgres").parse().unwrap(), App::new(app, 0).unwrap())
}

/// Makes an initial copy.
pub async fn copied(options: &Options) -> (CopyPlan, Model) {
    let (sender, mut receiver) = mpsc::channel(4);
    let receive = async {
        let mut model = Model::default();
        let mut plan: Option<CopyPlan> = None;
        while let Some(message) = receiver.recv().await {
            match message {
                CopyMessage::Plan(p) => {
                    (model.version, model.initial) = (p.version, p.version);
                    model.tables = p.tables.iter().map(|t| (t.oid, (Arc::clone(t), Vec::new()))).collect();
                    plan = Some(p);
                }
                CopyMessage::Block { table, block } => {
                    let oid = plan.as_ref().unwrap().tables[table].oid;
                    let rows = &mut model.tables.get_mut(&oid).unwrap().1;
                    for row in 0..block.row_count() {
                        rows.push((0..block.column_count()).map(|c| Cell::from(block.cell(row, c))).collect());
                    }
                }
            }
        }
        model
    };
    let (plan, model) = tokio::join!(initial_copy(options, sender), receive);
    (plan.unwrap(), model)
}

/// Where a model stands.
pub fn resume_at(plan: &CopyPlan, model: &Model) -> Resume {
    Resume { time_us: model.commit_time_us, ..resume(plan, model.version) }
}

pub fn resume(plan: &CopyPlan, after: Version) -> Resume {
    Resume { replica: plan.version, after, confirmed: after, time_us: None }
}

impl Model {
    /// Rows of a table in an order that does not depend on how they got there.
    pub fn sorted(&self, wire_name: &str) -> Vec<String> {
        let (_, rows) = self.tables.values().find(|(s, _)| s.wire_name() == wire_name).expect("the table is there");
        let mut rows: Vec<String> = rows.iter().map(|r| format!("{r:?}")).collect();
        rows.sort();
        rows
    }

    pub fn row(&self, wire_name: &str) -> &Row {
        let (_, rows) = self.tables.values().find(|(s, _)| s.wire_name() == wire_name).expect("the table is there");
        assert_eq!(rows.len(), 1);
        &rows[0]
    }

    pub fn spec(&self, wire_name: &str) -> Option<&Arc<TableSpec>> {
        self.tables.values().map(|(s, _)| s).find(|s| s.wire_name() == wire_name)
    }

    /// Tables outside of the application's own schemas, in comparable form.
    pub fn user_state(&self) -> State {
        self.tables
            .values()
            .filter(|(s, _)| s.schema == "public")
            .map(|(s, _)| (s.wire_name(), (TableSpec::clone(s), self.sorted(&s.wire_name()))))
            .collect()
    }

    pub fn apply(&mut self, transaction: Transaction) {
        assert!(transaction.version > self.version, "versions ascend");
        self.version = transaction.version;
        self.commit_time_us = Some(transaction.commit_time_us);
        for change in transaction.changes {
            self.apply_change(change);
        }
    }

    fn apply_change(&mut self, change: Change) {
        match change {
            Change::Insert { table, new } => {
                assert_eq!(new.len(), table.columns.len());
                self.rows(&table).push(new);
            }
            Change::Update { table, key, mut new } => {
                let positions = identity(&table);
                let key = key.unwrap_or_else(|| positions.iter().map(|&p| new[p].clone()).collect());
                if self.lacks_rows && !self.rows(&table).iter().any(|r| matches(r, &positions, &key)) {
                    self.rows(&table).push(new);
                    return;
                }
                let old = self.find(&table, &positions, &key);
                for (cell, old) in new.iter_mut().zip(old.iter()) {
                    if *cell == Cell::Unchanged {
                        *cell = old.clone();
                    }
                }
                *old = new;
            }
            Change::Delete { table, key } => {
                let positions = identity(&table);
                let rows = self.rows(&table);
                let at = rows.iter().position(|r| matches(r, &positions, &key));
                match at {
                    Some(at) => drop(rows.remove(at)),
                    None => assert!(self.lacks_rows, "the deleted row is there"),
                }
            }
            Change::Truncate { tables } => {
                for table in tables {
                    self.rows(&table).clear();
                }
            }
            Change::Schema(SchemaChange::CreateTable { table, rows }) => {
                let old = self.tables.insert(table.oid, (table, contents(rows).unwrap_or_default()));
                assert!(old.is_none(), "a created table is new");
            }
            Change::Schema(SchemaChange::DropTable { table }) => {
                self.tables.remove(&table.oid).expect("a dropped table is there");
            }
            Change::Schema(SchemaChange::AlterTable { old, new, added, rows }) => {
                let (spec, present) = self.tables.get_mut(&old.oid).expect("an altered table is there");
                assert_eq!(spec, &old, "schema changes connect");
                let altered = contents(rows).unwrap_or_else(|| {
                    let cell = |row: &Row, attnum: i16, name: &str| match old
                        .columns
                        .iter()
                        .position(|c| c.attnum == attnum)
                    {
                        Some(position) => row[position].clone(),
                        None => added.iter().find(|a| a.name == name).expect("a new column has a value").value.clone(),
                    };
                    present.iter().map(|r| new.columns.iter().map(|c| cell(r, c.attnum, &c.name)).collect()).collect()
                });
                *present = altered;
                *spec = new;
            }
        }
    }

    fn rows(&mut self, table: &Arc<TableSpec>) -> &mut Vec<Row> {
        let (spec, rows) = self.tables.get_mut(&table.oid).expect("changes are of known tables");
        assert_eq!(spec, table, "changes use the present spec");
        rows
    }

    fn find(&mut self, table: &Arc<TableSpec>, positions: &[usize], key: &[Cell]) -> &mut Row {
        self.rows(table).iter_mut().find(|r| matches(r, positions, key)).expect("the updated row is there")
    }
}

fn contents(rows: Backfill) -> Option<Vec<Row>> {
    match rows {
        Backfill::None => None,
        Backfill::Rows(rows) => Some(rows),
    }
}

fn identity(table: &TableSpec) -> Vec<usize> {
    table.identity.iter().map(|n| table.columns.iter().position(|c| c.name == *n).unwrap()).collect()
}

fn matches(row: &Row, positions: &[usize], key: &[Cell]) -> bool {
    // Debug form, because NaN differs from itself.
    positions.iter().zip(key).all(|(&p, k)| format!("{:?}", row[p]) == format!("{k:?}"))
}

/// Applies what the stream has until everything that is in the database now has arrived; needs the table of [`MARK`].
pub async fn catch_up(stream: &mut Stream, model: &mut Model, client: &Client) {
    let statement = "INSERT INTO public.mark VALUES (DEFAULT) RETURNING n";
    let n: i64 = client.query_one(statement, &[]).await.unwrap().get(0);
    loop {
        let event =
            tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("the mark arrives").unwrap();
        let Event::Transaction(transaction) = event else { continue };
        let arrived = transaction
            .changes
            .iter()
            .any(|c| matches!(c, Change::Insert { table, new } if table.name == "mark" && new[0] == Cell::Int(n)));
        model.apply(transaction);
        if arrived {
            return;
        }
    }
}

/// Goes on until the model is what a fresh copy of the database is: contents that are read anew come when they are whole. Nobody
/// writes meanwhile.
pub async fn settle(stream: &mut Stream, model: &mut Model, postgres: &Postgres) {
    let (_, expected) = copied(&options(postgres, "oracle")).await;
    settle_to(stream, model, &expected).await;
}

/// Goes on until the model is what another one is.
pub async fn settle_to(stream: &mut Stream, model: &mut Model, expected: &Model) {
    let expected = expected.user_state();
    let settled = async {
        while model.user_state() != expected {
            if let Event::Transaction(transaction) = stream.next().await.unwrap() {
                model.apply(transaction);
            }
        }
    };
    if tokio::time::timeout(Duration::from_secs(30), settled).await.is_err() {
        assert_equal(&model.user_state(), &expected);
    }
}

pub const MARK: &str = "CREATE TABLE mark (n bigserial PRIMARY KEY);";

/// Asserts that the model is what a fresh copy of the database is.
pub async fn assert_equals_copy(model: &Model, postgres: &Postgres) {
    let (_, expected) = copied(&options(postgres, "oracle")).await;
    assert_equal(&model.user_state(), &expected.user_state());
}

type State = BTreeMap<String, (TableSpec, Vec<String>)>;

fn assert_equal(got: &State, expected: &State) {
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, (spec, rows)) in expected {
        assert_eq!(&got[name].0, spec, "{name}");
        assert_eq!(&got[name].1, rows, "{name}");
    }
}
