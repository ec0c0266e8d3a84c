//! Whose log it is, and that it is whole; whatever the database around it is like.

use std::time::Duration;

use changes::{Error, Log, Options, discover};
use upstream::App;

use crate::{Fixture, owner, read_all, start, start_pooled, table, transaction, v};

/// Everything that can be set for a database, at once.
const HARSH: &str = "CREATE SCHEMA bait; CREATE TABLE bait.pg_database (oid int, datname text);
    ALTER DATABASE postgres SET statement_timeout = '300ms'; ALTER DATABASE postgres SET lock_timeout = '100ms';
    ALTER DATABASE postgres SET idle_in_transaction_session_timeout = '300ms';
    ALTER DATABASE postgres SET default_transaction_read_only = on;
    ALTER DATABASE postgres SET default_transaction_isolation = 'serializable';
    ALTER DATABASE postgres SET search_path = 'bait, pg_catalog';
    ALTER DATABASE postgres SET bytea_output = 'escape'; ALTER DATABASE postgres SET standard_conforming_strings = off;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_database_sets_does_not_reach_the_log() {
    check_settings(&start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_database_sets_does_not_reach_the_log_through_a_pooler() {
    let (fixture, _pooler) = start_pooled();
    check_settings(&fixture).await;
}

async fn check_settings(fixture: &Fixture) {
    // Was connected before, so nothing of it is set here.
    let other = fixture.postgres.connect("postgres").await.unwrap();
    other.batch_execute(HARSH).await.unwrap();
    let mut log = Log::open(&fixture.options).await.unwrap();
    log.begin(v(10), &owner("a")).await.unwrap();
    let table = table();
    other.batch_execute("BEGIN; LOCK TABLE \"zero_0/cdc\".state IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let appending = async { log.append(&[transaction(&table, 11, 1, "x")]).await };
    let holding = async {
        tokio::time::sleep(Duration::from_millis(1000)).await;
        other.batch_execute("COMMIT").await
    };
    let (appended, held) = tokio::join!(appending, holding);
    appended.unwrap();
    held.unwrap();
    log.purge(v(11), 0).await.unwrap();
    log.take_over(&owner("b")).await.unwrap();
    log.append(&[transaction(&table, 12, 1, "x")]).await.unwrap();
    assert_eq!(log.last().await.unwrap(), v(12));
    // A pooler's connections go on to others: nothing of ours is left on them.
    let timeout = "SELECT current_setting('statement_timeout') WHERE current_setting('search_path') LIKE '%bait%'";
    let client = upstream::connect_pooled(&fixture.options.address, "test").await.unwrap();
    for _ in 0..3 {
        let row = client.query_typed_one(timeout, &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "300ms");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_came_with_a_dump_is_none() {
    let fixture = start();
    let table = table();
    let mut log = Log::open(&fixture.options).await.unwrap();
    log.begin(v(10), &owner("prod")).await.unwrap();
    log.append(&[transaction(&table, 11, 1, "x")]).await.unwrap();
    drop(log);
    let elsewhere = fixture.postgres.connect("template1").await.unwrap();
    for _ in 0..100 {
        // The server's process ends a moment after its client.
        if elsewhere.batch_execute("CREATE DATABASE staging TEMPLATE postgres").await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let clone = Options::new(fixture.postgres.url("staging").parse().unwrap(), App::new("zero", 0).unwrap());
    assert_eq!(discover(&clone).await.unwrap(), None);
    let mut own = Log::open(&clone).await.unwrap();
    assert_eq!(own.lineage().await.unwrap(), None);
    assert!(matches!(own.take_over(&owner("staging")).await, Err(Error::Empty)));
    own.begin(v(50), &owner("staging")).await.unwrap();
    own.append(&[transaction(&table, 51, 1, "y")]).await.unwrap();
    assert_eq!(discover(&clone).await.unwrap(), Some(owner("staging")));
    assert_eq!(discover(&fixture.options).await.unwrap(), Some(owner("prod")));

    // A log of a version that did not note where it was written is this database's.
    let client = fixture.postgres.connect("postgres").await.unwrap();
    client.batch_execute("ALTER TABLE \"zero_0/cdc\".state DROP COLUMN home").await.unwrap();
    assert_eq!(discover(&fixture.options).await.unwrap(), Some(owner("prod")));
    let mut log = Log::open(&fixture.options).await.unwrap();
    log.take_over(&owner("next")).await.unwrap();
    assert_eq!(read_all(&log, v(10)).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_set_back_takes_nothing_more() {
    let fixture = start();
    let table = table();
    let mut log = Log::open(&fixture.options).await.unwrap();
    log.begin(v(10), &owner("a")).await.unwrap();
    assert_eq!(log.reader().last_commit_time_us().await.unwrap(), None);
    for n in 11..15 {
        log.append(&[transaction(&table, n, 1, "x")]).await.unwrap();
    }
    let known = transaction(&table, 14, 1, "x").commit_time_us;
    assert_eq!(log.reader().last_commit_time_us().await.unwrap(), Some(known));
    let client = fixture.postgres.connect("postgres").await.unwrap();
    let lose = "UPDATE \"zero_0/cdc\".state SET \"last\" = 12; DELETE FROM \"zero_0/cdc\".pages WHERE \"last\" > 12";
    client.batch_execute(lose).await.unwrap();
    let lost = log.append(&[transaction(&table, 15, 1, "x")]).await.unwrap_err();
    assert!(matches!(lost, Error::SetBack { stored, last } if (stored, last) == (v(14), v(12))), "{lost}");
    // Whoever takes it over knows only what it holds.
    let lineage = log.take_over(&owner("a")).await.unwrap();
    assert_eq!(lineage.last, v(12));
    log.append(&[transaction(&table, 13, 1, "y")]).await.unwrap();
}
