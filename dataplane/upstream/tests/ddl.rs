//! Schema changes while streaming: the model must equal a fresh copy after each.

use rows::Cell;
use upstream::{Error, Stream};

use crate::model::{Fixture, MARK, Model, assert_equals_copy, catch_up, copied, resume, settle, settle_to};

const ISSUE: &str = "CREATE TABLE issue (id int PRIMARY KEY, title text NOT NULL);
    INSERT INTO issue SELECT n, 'title ' || n FROM generate_series(1, 50) n;";

async fn start(setup: &str) -> (Fixture, Model, Stream) {
    let fixture = Fixture::start(&format!("{MARK}{ISSUE}{setup}")).await;
    let (plan, model) = copied(&fixture.options).await;
    let stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    (fixture, model, stream)
}

/// Runs each statement, followed by a comparison.
async fn check(setup: &str, statements: &[&str]) {
    let (fixture, mut model, mut stream) = start(setup).await;
    for statement in statements {
        fixture.run(statement).await;
        catch_up(&mut stream, &mut model, &fixture.client).await;
        println!("{statement}");
        settle(&mut stream, &mut model, &fixture.postgres).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_are_added_renamed_and_dropped() {
    check(
        "",
        &[
            "ALTER TABLE issue ADD COLUMN n int",
            "ALTER TABLE issue ADD COLUMN flag bool NOT NULL DEFAULT true",
            "ALTER TABLE issue ADD COLUMN label text DEFAULT 'it''s \"x\", {y}'",
            "ALTER TABLE issue ADD COLUMN amount numeric DEFAULT -1.5 * 2, ADD COLUMN made timestamptz DEFAULT now()",
            "ALTER TABLE issue ADD COLUMN tags text[] DEFAULT '{\"a b\",c}', ADD COLUMN doc jsonb DEFAULT '{\"a\": \"{\"}'",
            "INSERT INTO issue (id, title) VALUES (100, 'x'); UPDATE issue SET n = 5 WHERE id = 1",
            "ALTER TABLE issue RENAME COLUMN title TO caption",
            "UPDATE issue SET caption = 'new' WHERE id = 2",
            "ALTER TABLE issue DROP COLUMN flag",
            "BEGIN; INSERT INTO issue (id, caption) VALUES (101, 'y'); ALTER TABLE issue ADD COLUMN late int DEFAULT 7;
             INSERT INTO issue (id, caption, late) VALUES (102, 'z', 8); ALTER TABLE issue DROP COLUMN n;
             DELETE FROM issue WHERE id = 3; COMMIT",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_come_go_and_change_names() {
    check(
        "CREATE SCHEMA hidden; CREATE TABLE hidden.moved (id int PRIMARY KEY); INSERT INTO hidden.moved VALUES (1), (2);",
        &[
            "CREATE TABLE comment (id int PRIMARY KEY, body text); INSERT INTO comment VALUES (1, 'a')",
            "BEGIN; CREATE TABLE label (id int PRIMARY KEY); INSERT INTO label VALUES (1); COMMIT",
            "CREATE TABLE derived AS SELECT id, title FROM issue WHERE id < 10",
            "ALTER TABLE comment RENAME TO remark",
            "INSERT INTO remark VALUES (2, 'b')",
            "BEGIN; ALTER TABLE remark RENAME TO old; CREATE TABLE remark (id int PRIMARY KEY); INSERT INTO remark VALUES (5); COMMIT",
            "DROP TABLE label",
            "ALTER TABLE hidden.moved SET SCHEMA public",
            "INSERT INTO moved VALUES (3)",
            "ALTER TABLE moved SET SCHEMA hidden",
            "CREATE INDEX by_title ON issue (title DESC)",
            "CREATE INDEX CONCURRENTLY by_both ON issue (id, title)",
            "CREATE TEMP TABLE issue_draft AS SELECT * FROM issue; DROP TABLE issue_draft",
            "CREATE UNIQUE INDEX unique_title ON issue (title, id)",
            "DROP INDEX by_title",
            "TRUNCATE issue",
            "ALTER TABLE issue DROP CONSTRAINT issue_pkey; ALTER TABLE issue ADD PRIMARY KEY (title)",
            "INSERT INTO issue VALUES (1, 'one'); UPDATE issue SET id = 2; UPDATE issue SET title = 'two'",
            "ALTER TABLE issue REPLICA IDENTITY FULL; UPDATE issue SET id = 3; DELETE FROM issue",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contents_that_the_stream_does_not_carry_are_read() {
    check(
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE person (id int PRIMARY KEY, mood mood);
         INSERT INTO person VALUES (1, 'sad'), (2, 'glad');
         CREATE TABLE part (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (10); INSERT INTO part VALUES (1), (2);",
        &[
            "ALTER TABLE issue ADD COLUMN token uuid DEFAULT gen_random_uuid()",
            "ALTER TABLE issue ADD COLUMN serial bigserial",
            "ALTER TABLE issue ALTER COLUMN id TYPE text USING 'id-' || id",
            "ALTER TABLE issue ALTER COLUMN title TYPE text USING upper(title), ALTER COLUMN serial TYPE int",
            "BEGIN; DELETE FROM issue WHERE id = 'id-1'; ALTER TABLE issue ADD COLUMN r float8 DEFAULT random();
             INSERT INTO issue (id, title) VALUES ('new', 'new'); UPDATE issue SET title = 'changed' WHERE id = 'id-2'; COMMIT",
            "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
            "ALTER TYPE mood ADD VALUE 'calm'",
            "INSERT INTO person VALUES (3, 'calm')",
            "CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (10) TO (20)",
            "INSERT INTO part VALUES (11)",
            "DROP TABLE part_a",
            "CREATE TABLE spare (id int PRIMARY KEY); INSERT INTO spare VALUES (25)",
            "ALTER TABLE part ATTACH PARTITION spare FOR VALUES FROM (20) TO (30)",
            "ALTER TABLE part DETACH PARTITION part_b",
        ],
    )
    .await;
}

/// Changes between the schema change and the reading are in the contents already and must not be applied twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_lags_behind_reads_contents_once() {
    let (fixture, mut model, stream) = start("").await;
    let resume_at =
        upstream::Resume { replica: model.version, after: model.version, confirmed: model.version, time_us: None };
    drop(stream);
    fixture
        .run(
            "ALTER TABLE issue ADD COLUMN token uuid DEFAULT gen_random_uuid();
             UPDATE issue SET title = 'later' WHERE id = 1; DELETE FROM issue WHERE id = 2;
             INSERT INTO issue VALUES (200, 'inserted later'); TRUNCATE mark;
             ALTER TABLE issue ADD COLUMN second uuid DEFAULT gen_random_uuid();
             DELETE FROM issue WHERE id = 3; INSERT INTO issue VALUES (201, 'inserted last');
             CREATE TABLE gone (id int PRIMARY KEY); ALTER TABLE gone ADD COLUMN r float8 DEFAULT random(); INSERT INTO gone VALUES (1);
             DROP TABLE gone;",
        )
        .await;
    let mut stream = Stream::start(&fixture.options, resume_at).await.unwrap();
    catch_up(&mut stream, &mut model, &fixture.client).await;
    settle(&mut stream, &mut model, &fixture.postgres).await;
    // The memory of what to skip survives a restart in the middle.
    fixture.run("UPDATE issue SET title = 'again' WHERE id = 4").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_equals_copy(&model, &fixture.postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publications_of_our_own_are_followed() {
    let fixture = Fixture::start(&format!(
        "{MARK}{ISSUE} CREATE TABLE comment (id int PRIMARY KEY, body text, secret text); INSERT INTO comment VALUES (1, 'a', 's'), (2, 'b', 't');
         CREATE PUBLICATION mine FOR TABLE mark, issue WHERE (id > 10)"
    ))
    .await;
    let mut options = fixture.options.clone();
    options.publications = vec!["mine".to_owned()];
    let oracle = upstream::Options { app: upstream::App::new("oracle", 0).unwrap(), ..options.clone() };
    let (plan, mut model) = copied(&options).await;
    assert_eq!(model.sorted("issue").len(), 40);
    assert!(model.spec("comment").is_none());
    let mut stream = Stream::start(&options, resume(&plan, plan.version)).await.unwrap();
    fixture.run("UPDATE issue SET id = id + 60 WHERE id IN (5, 50); DELETE FROM issue WHERE id = 49").await;
    fixture.run("ALTER PUBLICATION mine ADD TABLE comment (id, body)").await;
    fixture.run("UPDATE comment SET body = 'c' WHERE id = 2").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    let (_, expected) = copied(&oracle).await;
    settle_to(&mut stream, &mut model, &expected).await;
    let comment = model.spec("comment").unwrap();
    assert_eq!(comment.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["id", "body"]);
    fixture.run("ALTER PUBLICATION mine SET TABLE mark, issue WHERE (id > 40)").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert!(model.spec("comment").is_none());
    let (_, expected) = copied(&oracle).await;
    settle_to(&mut stream, &mut model, &expected).await;
    assert!(model.sorted("issue").len() < 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_primary_key_is_identified_by_its_unique_index() {
    let (fixture, mut model, mut stream) = start(
        "CREATE TABLE keyed (a int NOT NULL, b text NOT NULL, n int); CREATE UNIQUE INDEX keyed_ab ON keyed (b, a);
         INSERT INTO keyed VALUES (1, 'x', 1);",
    )
    .await;
    assert_eq!(model.spec("keyed").unwrap().identity, ["b", "a"]);
    fixture.run("UPDATE keyed SET n = 2; UPDATE keyed SET a = 2; INSERT INTO keyed VALUES (9, 'y', 9); DELETE FROM keyed WHERE a = 9").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_eq!(model.row("keyed"), &[Cell::Int(2), Cell::Text("x".into()), Cell::Int(2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_event_triggers_a_new_shape_asks_for_a_rebuild() {
    let fixture = Fixture::start(
        "CREATE ROLE plain LOGIN REPLICATION; CREATE TABLE issue (id int PRIMARY KEY); ALTER TABLE issue OWNER TO plain;
         CREATE TABLE mark (n bigserial PRIMARY KEY);
         CREATE PUBLICATION mine FOR TABLE issue, mark; GRANT CREATE ON DATABASE postgres TO plain;
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain; GRANT USAGE ON SCHEMA public TO plain;",
    )
    .await;
    let mut options = fixture.options.clone();
    options.address = fixture.postgres.url("postgres").replace("postgres@", "plain@").parse().unwrap();
    options.publications = vec!["mine".to_owned()];
    let (plan, mut model) = copied(&options).await;
    let mut stream = Stream::start(&options, resume(&plan, plan.version)).await.unwrap();
    fixture.run("INSERT INTO issue VALUES (1)").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_eq!(model.row("issue"), &[Cell::Int(1)]);
    fixture.run("ALTER TABLE issue ADD COLUMN n int; INSERT INTO issue VALUES (2, 2)").await;
    let error = loop {
        if let Err(error) = stream.next().await {
            break error;
        }
    };
    assert!(
        matches!(&error, Error::ResetRequired { message, .. } if message.contains("issue") && message.contains("event triggers")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schema_changes_by_other_roles_are_seen() {
    let (fixture, mut model, mut stream) =
        start("CREATE ROLE dev LOGIN; GRANT CREATE, USAGE ON SCHEMA public TO dev;").await;
    fixture
        .run("SET ROLE dev; CREATE TABLE theirs (id int PRIMARY KEY); INSERT INTO theirs VALUES (1); RESET ROLE")
        .await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_eq!(model.row("theirs"), &[Cell::Int(1)]);
}
