//! Contents that are read anew beside the stream: nothing else waits, nothing is lost, nothing comes twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rows::{Cell, Change};
use tokio_postgres::Client;
use upstream::{Event, Stream};

use crate::model::{Fixture, MARK, Model, assert_equals_copy, catch_up, copied, resume, settle};

const TABLES: &str = "CREATE TABLE other (id int PRIMARY KEY, n int NOT NULL);
    INSERT INTO other SELECT n, n FROM generate_series(1, 200) n;
    CREATE TABLE held (id int PRIMARY KEY);";

async fn start(setup: &str) -> (Fixture, Model, Stream) {
    let fixture = Fixture::start(&format!("{MARK}{TABLES}{setup}")).await;
    let (plan, model) = copied(&fixture.options).await;
    let stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    (fixture, model, stream)
}

async fn session(fixture: &Fixture) -> Client {
    fixture.postgres.connect("postgres").await.unwrap()
}

fn columns(model: &Model, table: &str) -> usize {
    model.spec(table).unwrap().columns.len()
}

/// Goes on until the new column of `other` is there.
async fn become_whole(stream: &mut Stream, model: &mut Model) {
    let whole = async {
        while columns(model, "other") == 2 {
            if let Event::Transaction(transaction) = stream.next().await.unwrap() {
                model.apply(transaction);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), whole).await.expect("the table becomes whole");
}

/// A write transaction that is open anywhere holds nothing up, not even the table itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_holds_nothing_up() {
    let (fixture, mut model, mut stream) = start("").await;
    let holder = session(&fixture).await;
    holder.batch_execute("BEGIN; INSERT INTO held VALUES (1)").await.unwrap();
    fixture.run("ALTER TABLE other ADD COLUMN r float8 DEFAULT random()").await;
    fixture.run("UPDATE other SET n = n + 1 WHERE id < 50").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    become_whole(&mut stream, &mut model).await;
    holder.batch_execute("COMMIT").await.unwrap();
    settle(&mut stream, &mut model, &fixture.postgres).await;
}

/// One that was open before the stream began may have been delivered by a former stream, so the table waits for it; others do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_from_before_the_stream_holds_up_the_table_only() {
    let (fixture, mut model, stream) = start("").await;
    drop(stream);
    let holder = session(&fixture).await;
    holder.batch_execute("BEGIN; INSERT INTO held VALUES (1)").await.unwrap();
    let at = upstream::Resume {
        replica: model.version,
        after: model.version,
        confirmed: model.version,
        time_us: model.commit_time_us,
    };
    let mut stream = Stream::start(&fixture.options, at).await.unwrap();
    fixture.run("ALTER TABLE other ADD COLUMN r float8 DEFAULT random()").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_eq!(columns(&model, "other"), 2, "as it was");
    holder.batch_execute("COMMIT").await.unwrap();
    settle(&mut stream, &mut model, &fixture.postgres).await;
    assert_eq!(columns(&model, "other"), 3);
}

/// A lock on the table, and an end of the reader's connection, delay that table only, also across a restart in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_or_a_restart_delays_the_table_only() {
    let (fixture, mut model, mut stream) = start("").await;
    let initial = model.version;
    let holder = session(&fixture).await;
    fixture.run("ALTER TABLE other ADD COLUMN r float8 DEFAULT random(); UPDATE other SET n = -1 WHERE id = 1").await;
    holder.batch_execute("BEGIN; LOCK TABLE other IN ACCESS EXCLUSIVE MODE").await.unwrap();
    fixture.run("INSERT INTO held VALUES (7)").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    let is_early = columns(&model, "other") == 3;
    drop(stream);
    let at = upstream::Resume {
        replica: initial,
        after: model.version,
        confirmed: model.version,
        time_us: model.commit_time_us,
    };
    let mut stream = Stream::start(&fixture.options, at).await.unwrap();
    fixture.run("INSERT INTO held VALUES (8)").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert!(is_early || columns(&model, "other") == 2, "as it was");
    assert_eq!(model.sorted("held").len(), 2);
    holder.batch_execute("UPDATE other SET n = -2 WHERE id = 2; COMMIT").await.unwrap();
    settle(&mut stream, &mut model, &fixture.postgres).await;
    // Nothing is read twice when it is whole.
    fixture.run("UPDATE other SET n = -3 WHERE id = 3").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_equals_copy(&model, &fixture.postgres).await;
}

/// The connection that reads may be ended at any time: by an administrator, or by limits of the role.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_ended_begins_again() {
    let (fixture, mut model, mut stream) =
        start("INSERT INTO other SELECT n, n FROM generate_series(1000, 60000) n;").await;
    fixture.run("ALTER ROLE postgres SET idle_in_transaction_session_timeout = '20ms'").await;
    let killer = session(&fixture).await;
    let done = Arc::new(AtomicBool::new(false));
    let killing = {
        let done = Arc::clone(&done);
        tokio::spawn(async move {
            let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'zero-backfill-stream'";
            let mut killed = 0_i64;
            while killed < 2 && !done.load(Ordering::Relaxed) {
                killed += killer.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    };
    fixture.run("ALTER TABLE other ADD COLUMN r float8 DEFAULT random()").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    become_whole(&mut stream, &mut model).await;
    done.store(true, Ordering::Relaxed);
    killing.await.unwrap();
    fixture.run("ALTER ROLE postgres RESET idle_in_transaction_session_timeout").await;
    settle(&mut stream, &mut model, &fixture.postgres).await;
}

/// Schema changes that come while the table is withheld.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schema_changes_meet_a_table_that_is_withheld() {
    for then in [
        "DROP TABLE other",
        "ALTER TABLE other RENAME TO another; CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)",
        "ALTER TABLE other DROP COLUMN r; UPDATE other SET n = 5",
        "ALTER TABLE other ADD COLUMN s int DEFAULT 3; CREATE INDEX by_n ON other (n); INSERT INTO other VALUES (500, 1)",
        "TRUNCATE other; INSERT INTO other VALUES (1, 1)",
    ] {
        let (fixture, mut model, mut stream) = start("").await;
        fixture.run(&format!("BEGIN; ALTER TABLE other ADD COLUMN r float8 DEFAULT random(); UPDATE other SET n = 0 WHERE id = 9; COMMIT; {then}")).await;
        catch_up(&mut stream, &mut model, &fixture.client).await;
        println!("{then}");
        settle(&mut stream, &mut model, &fixture.postgres).await;
    }
}

/// Writers move amounts between rows of one table, so their sum is the same at every version, whatever is read anew meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_doubled_under_concurrent_writes() {
    let (fixture, mut model, mut stream) =
        start("CREATE TABLE account (id int PRIMARY KEY, amount int NOT NULL); INSERT INTO account SELECT n, 100 FROM generate_series(1, 40) n;")
            .await;
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for _ in 0..3 {
        let (client, done) = (session(&fixture).await, Arc::clone(&done));
        writers.push(tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let (from, to) = (rand::random_range(1..=20), rand::random_range(21..=40));
                // Rows in one order, so that writers do not lock each other out; some transactions stay open for a while.
                let pause = if rand::random_bool(0.1) { "SELECT pg_sleep(0.05);" } else { "" };
                let sql = format!(
                    "BEGIN; UPDATE account SET amount = amount - 1 WHERE id = {from}; {pause}
                     UPDATE account SET amount = amount + 1 WHERE id = {to};
                     INSERT INTO account (id, amount) VALUES ({id}, 0) ON CONFLICT DO NOTHING; DELETE FROM account WHERE id = {other} AND amount = 0; COMMIT",
                    id = rand::random_range(100..140),
                    other = rand::random_range(100..140),
                );
                if client.batch_execute(&sql).await.is_err() {
                    // A deadlock with a schema change: the writer tries something else.
                    let _ = client.batch_execute("ROLLBACK").await;
                }
            }
        }));
    }
    for n in 0..6 {
        let ddl = match n % 3 {
            0 => format!("ALTER TABLE account ADD COLUMN r{n} float8 DEFAULT random()"),
            1 => "ALTER TABLE account ALTER COLUMN amount TYPE int USING amount + 0".to_owned(),
            _ => format!("ALTER TABLE account ADD COLUMN s{n} bigserial"),
        };
        fixture.run(&ddl).await;
        let until = tokio::time::Instant::now() + Duration::from_millis(300);
        while let Ok(event) = tokio::time::timeout_at(until, stream.next()).await {
            apply(&mut model, event.unwrap());
        }
    }
    done.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    settle(&mut stream, &mut model, &fixture.postgres).await;
    assert_eq!(sum(&model), 4000);
}

fn sum(model: &Model) -> i64 {
    let (spec, rows) = model.tables.values().find(|(spec, _)| spec.name == "account").unwrap();
    let at = spec.columns.iter().position(|c| c.name == "amount").unwrap();
    let amount = |row: &Vec<Cell>| match row[at] {
        Cell::Int(n) => n,
        ref other => panic!("{other:?}"),
    };
    rows.iter().map(amount).sum()
}

fn apply(model: &mut Model, event: Event) {
    let Event::Transaction(transaction) = event else { return };
    let is_about = transaction.changes.iter().any(|change| match change {
        Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => {
            table.name == "account"
        }
        Change::Truncate { .. } | Change::Schema(_) => true,
    });
    model.apply(transaction);
    if is_about {
        assert_eq!(sum(model), 4000, "at {}", model.version);
    }
}
