//! Roles that may not create event triggers: migrations say at their end that the schema has changed.

use upstream::{Stream, connect};

use crate::model::{Fixture, MARK, assert_equals_copy, catch_up, copied, resume_at, settle};

/// A database of a provider that keeps event triggers, and whole schemas in publications, to itself.
async fn restricted() -> Fixture {
    let mut fixture = Fixture::start(
        "CREATE ROLE plain LOGIN REPLICATION; GRANT CREATE ON DATABASE postgres TO plain; GRANT ALL ON SCHEMA public TO plain",
    )
    .await;
    fixture.options.address = fixture.postgres.url("postgres").replace("postgres@", "plain@").parse().unwrap();
    fixture.options.publications = vec!["mine".to_owned()];
    let plain = connect(&fixture.options.address, "test").await.unwrap();
    plain
        .batch_execute(&format!(
            "SET search_path = public; {MARK} CREATE TABLE issue (id int PRIMARY KEY, title text); INSERT INTO issue VALUES (1, 'a'), (2, 'b');
             CREATE PUBLICATION mine FOR TABLE mark, issue"
        ))
        .await
        .unwrap();
    fixture.client = plain;
    fixture
}

const DETECTION: &str = "SELECT \"ddlDetection\" FROM zero_0.\"shardConfig\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_without_triggers_calls_update_schemas() {
    let fixture = restricted().await;
    let detection = async || fixture.client.query_one(DETECTION, &[]).await.unwrap().get::<_, bool>(0);
    let (plan, mut model) = copied(&fixture.options).await;
    assert!(!detection().await, "nobody says that migrations tell");
    fixture.run("UPDATE zero_0.\"shardConfig\" SET \"ddlDetection\" = true").await;
    // Neither a start nor a release with other functions takes that back.
    for functions in ["\"functions\"", "'of another release'"] {
        fixture.run(&format!("UPDATE zero_0.\"shardConfig\" SET \"functions\" = {functions}")).await;
        drop(Stream::start(&fixture.options, resume_at(&plan, &model)).await.unwrap());
        assert!(detection().await);
    }
    let mut stream = Stream::start(&fixture.options, resume_at(&plan, &model)).await.unwrap();
    for migration in [
        "ALTER TABLE issue ADD COLUMN c int; UPDATE issue SET c = id; INSERT INTO issue VALUES (3, 'c', 3)",
        "CREATE TABLE note (id int PRIMARY KEY, body text); ALTER PUBLICATION mine ADD TABLE note; INSERT INTO note VALUES (1, 'n')",
        "INSERT INTO issue VALUES (4, 'gone', 4); ALTER TABLE issue ADD COLUMN d int NOT NULL DEFAULT 7; INSERT INTO issue VALUES (5, 'gone', 5, 5);
         TRUNCATE issue; INSERT INTO issue VALUES (6, 'six', 6, 6)",
        "ALTER TABLE issue ALTER COLUMN c TYPE text USING 'c' || c; UPDATE issue SET title = 'again'",
        "ALTER TABLE note RENAME COLUMN body TO text; INSERT INTO note VALUES (2, 'm'); DELETE FROM note WHERE id = 1",
        "DROP TABLE note",
        "SELECT 1",
    ] {
        fixture.run(&format!("BEGIN; {migration}; SELECT zero_0.update_schemas(); COMMIT")).await;
        catch_up(&mut stream, &mut model, &fixture.client).await;
        settle(&mut stream, &mut model, &fixture.postgres).await;
    }
    assert_equals_copy(&model, &fixture.postgres).await;
    // A migration that forgets it is noticed.
    fixture.run("ALTER TABLE issue ADD COLUMN e int; INSERT INTO issue VALUES (8, 'e', 'c', 8, 8)").await;
    let error = loop {
        if let Err(error) = stream.next().await {
            break error.to_string();
        }
    };
    assert!(error.contains("table issue changed its shape"), "{error}");
}
