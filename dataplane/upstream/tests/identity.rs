//! Databases that look like the one that is replicated and are not.

use std::time::Duration;

use testkit::postgres::Options as ServerOptions;
use tokio_postgres::Client;
use upstream::{Error, Event, Options, Resume, Stream, home, is_streamed};

use crate::model::{Fixture, MARK, catch_up, copied, options, resume, resume_at};

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

fn rows(model: &crate::model::Model) -> i64 {
    i64::try_from(model.sorted("mark").len()).unwrap()
}

/// How a stream ends that must not deliver anything.
async fn refusal(options: &Options, resume: Resume) -> Error {
    match Stream::start(options, resume).await {
        Err(error) => error,
        Ok(mut stream) => loop {
            match tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("it ends") {
                Err(error) => return error,
                Ok(event) => assert!(matches!(event, Event::Keepalive { .. }), "{event:?}"),
            }
        },
    }
}

async fn assert_set_back(options: &Options, resume: Resume) {
    let error = refusal(options, resume).await;
    assert!(matches!(&error, Error::ResetRequired { message, .. } if message.contains("was set back")), "{error}");
}

/// A server that is restored from a snapshot says the same of itself as before, and after some writes it is even past the same
/// positions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_snapshot_does_not_continue_what_came_after_it() {
    let fixture = Fixture::start(MARK).await;
    let (plan, mut model) = copied(&fixture.options).await;
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    catch_up(&mut stream, &mut model, &fixture.client).await;
    drop(stream);
    let common = model.clone();
    fixture.postgres.stop().unwrap();
    let restored = fixture.postgres.copy(ServerOptions::default(), &[]).unwrap();
    fixture.postgres.resume().unwrap();

    // What the snapshot has not, stored here and acknowledged.
    let client = fixture.postgres.connect("postgres").await.unwrap();
    let mut stream = Stream::start(&fixture.options, resume_at(&plan, &model)).await.unwrap();
    client.batch_execute("INSERT INTO mark SELECT generate_series(1000, 3000)").await.unwrap();
    catch_up(&mut stream, &mut model, &client).await;
    stream.acks().ack(model.version);
    drop(stream);

    let there = options(&restored, "zero");
    assert_set_back(&there, resume_at(&plan, &model)).await;
    let writer = restored.connect("postgres").await.unwrap();
    writer.batch_execute("INSERT INTO mark SELECT generate_series(5000, 9000)").await.unwrap();
    assert_set_back(&there, resume_at(&plan, &model)).await;

    // What both have in common is continued by either.
    let mut stream = Stream::start(&there, resume_at(&plan, &common)).await.unwrap();
    let mut continued = common;
    catch_up(&mut stream, &mut continued, &writer).await;
    drop(stream);
    assert_eq!(number(&writer, "SELECT count(*) FROM mark").await, rows(&continued));
    // A transaction at the same position that was committed at another time is another one.
    let time_us = continued.commit_time_us.map(|us| us + 1);
    assert_set_back(&there, Resume { time_us, ..resume(&plan, continued.version) }).await;
    let mut stream = Stream::start(&fixture.options, resume_at(&plan, &model)).await.unwrap();
    catch_up(&mut stream, &mut model, &client).await;
    assert_eq!(number(&client, "SELECT count(*) FROM mark").await, rows(&model));
}

/// A slot is a name in the whole server, and a dump carries what is remembered of it into another database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_on_the_same_server_gets_a_replica_of_its_own() {
    let fixture = Fixture::start(MARK).await;
    let (plan, mut model) = copied(&fixture.options).await;
    let elsewhere = fixture.postgres.connect("template1").await.unwrap();
    let original = fixture.options.clone();
    let Fixture { postgres, client, .. } = fixture;
    drop(client);
    for _ in 0..100 {
        // The servers' processes end a moment after their clients.
        if elsewhere.batch_execute("CREATE DATABASE staging TEMPLATE postgres").await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let clone = Options { address: postgres.url("staging").parse().unwrap(), ..original.clone() };
    let (client, staging) = (postgres.connect("postgres").await.unwrap(), postgres.connect("staging").await.unwrap());
    assert_ne!(home(&client).await.unwrap(), home(&staging).await.unwrap());
    let mut stream = Stream::start(&original, resume(&plan, plan.version)).await.unwrap();
    catch_up(&mut stream, &mut model, &client).await;
    stream.acks().ack(model.version);

    assert!(is_streamed(&original).await.unwrap());
    assert!(!is_streamed(&clone).await.unwrap());
    assert!(matches!(refusal(&clone, resume(&plan, plan.version)).await, Error::ResetRequired { .. }));
    staging.batch_execute("INSERT INTO mark SELECT generate_series(100, 109)").await.unwrap();
    let (own, mut own_model) = copied(&clone).await;
    assert_ne!(own.slot, plan.slot);
    let mut own_stream = Stream::start(&clone, resume(&own, own.version)).await.unwrap();
    catch_up(&mut own_stream, &mut own_model, &staging).await;
    assert_eq!(number(&staging, "SELECT count(*) FROM mark").await, rows(&own_model));
    // The original was not disturbed: the same stream, of the same slot.
    catch_up(&mut stream, &mut model, &client).await;
    assert_eq!(number(&client, "SELECT count(*) FROM mark").await, rows(&model));
    assert!(is_streamed(&original).await.unwrap());
}

/// A replica that was made before homes were noted belongs to the database that knows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_a_home_is_adopted() {
    let fixture = Fixture::start(MARK).await;
    let (plan, mut model) = copied(&fixture.options).await;
    fixture.run("ALTER TABLE zero_0.replicas DROP COLUMN home").await;
    assert!(!is_streamed(&fixture.options).await.unwrap());
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    catch_up(&mut stream, &mut model, &fixture.client).await;
    let noted: String = fixture.client.query_one("SELECT home FROM zero_0.replicas", &[]).await.unwrap().get(0);
    assert_eq!(noted, home(&fixture.client).await.unwrap());
    // What was noted elsewhere is not.
    drop(stream);
    fixture.run("UPDATE zero_0.replicas SET home = '1/2'").await;
    assert!(matches!(refusal(&fixture.options, resume_at(&plan, &model)).await, Error::ResetRequired { .. }));
    fixture.run("CREATE ROLE plain LOGIN").await;
    let url = fixture.postgres.url("postgres").replace("postgres@", "plain@");
    assert_eq!(home(&upstream::connect(&url.parse().unwrap(), "test").await.unwrap()).await.unwrap(), noted);
}
