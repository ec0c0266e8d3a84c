//! What the set-up upstream means for others: users' sessions, other servers, forgers; and that nothing of it is missed.

use std::time::Duration;

use rows::Cell;
use testkit::postgres::Version as Server;
use tokio_postgres::Client;
use upstream::{Error, Event, Stream};

use crate::connect::logged;
use crate::model::{Fixture, MARK, Model, assert_equals_copy, catch_up, copied, resume, settle};

const ISSUE: &str =
    "CREATE TABLE issue (id int PRIMARY KEY, title text NOT NULL); INSERT INTO issue VALUES (1, 'one');";

async fn started(fixture: &Fixture) -> (Model, Stream) {
    let (plan, model) = copied(&fixture.options).await;
    let stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    (model, stream)
}

async fn start(setup: &str) -> (Fixture, Model, Stream) {
    let fixture = Fixture::start(&format!("{MARK}{ISSUE}{setup}")).await;
    let (model, stream) = started(&fixture).await;
    (fixture, model, stream)
}

/// Another session, in which nothing may have to wait.
async fn hasty(fixture: &Fixture) -> Client {
    let client = fixture.postgres.connect("postgres").await.unwrap();
    client.batch_execute("SET statement_timeout = '10s'").await.unwrap();
    client
}

/// Applies what the stream has until the model is as wanted.
async fn apply_until(stream: &mut Stream, model: &mut Model, is_wanted: impl Fn(&Model) -> bool) {
    while !is_wanted(model) {
        let event = tokio::time::timeout(Duration::from_secs(30), stream.next()).await.unwrap().unwrap();
        if let Event::Transaction(transaction) = event {
            model.apply(transaction);
        }
    }
}

/// What the session of a migration sets shows neither in the values of old rows nor in anything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_a_users_session_do_not_show() {
    let styles = ["ISO, DMY", "SQL, DMY", "SQL, MDY", "German, DMY", "Postgres, DMY", "Postgres, MDY"];
    for server in [Server::V15, Server::V18] {
        let fixture = Fixture::on(server, &format!("{MARK}{ISSUE}")).await;
        let (mut model, mut stream) = started(&fixture).await;
        for (n, style) in styles.iter().enumerate() {
            fixture
                .run(&format!(
                    "SET DateStyle = '{style}'; SET IntervalStyle = 'sql_standard'; SET TimeZone = 'Asia/Kolkata'; SET extra_float_digits = -3;
                     SET bytea_output = 'escape'; SET standard_conforming_strings = off; SET search_path = ''; SET quote_all_identifiers = on;
                     ALTER TABLE public.issue
                       ADD COLUMN at{n} timestamptz DEFAULT '2024-03-01 12:00:00+00', ADD COLUMN ts{n} timestamp DEFAULT '2024-12-03 12:00:00.123456',
                       ADD COLUMN d{n} date DEFAULT DATE '2024-03-01', ADD COLUMN t{n} timetz DEFAULT '23:59:59.5+05:30',
                       ADD COLUMN early{n} timestamptz DEFAULT '0044-03-15 12:00+00 BC', ADD COLUMN never{n} date DEFAULT 'infinity',
                       ADD COLUMN ats{n} timestamptz[] DEFAULT ARRAY['2024-03-01 12:00:00+00', NULL]::timestamptz[],
                       ADD COLUMN ds{n} date[] DEFAULT ARRAY[DATE '2024-03-01'], ADD COLUMN f{n} float8 DEFAULT 3.141592653589793,
                       ADD COLUMN r{n} float4 DEFAULT 0.1, ADD COLUMN fs{n} float8[] DEFAULT ARRAY[3.141592653589793, 1e300],
                       ADD COLUMN i{n} interval DEFAULT '-1 mon 2 days 03:04:05.6', ADD COLUMN m{n} money DEFAULT 1.5,
                       ADD COLUMN b{n} bytea DEFAULT E'\\\\x00ff5c', ADD COLUMN bs{n} bytea[] DEFAULT ARRAY[E'\\\\x00ff5c'::bytea],
                       ADD COLUMN n{n} numeric DEFAULT 12345678901234567890.5, ADD COLUMN s{n} text DEFAULT E'a\\\\b''c\"d';
                     RESET ALL"
                ))
                .await;
            catch_up(&mut stream, &mut model, &fixture.client).await;
            println!("{server:?} {style}");
            assert_equals_copy(&model, &fixture.postgres).await;
        }
        let column = model.spec("issue").unwrap().columns.iter().position(|c| c.name == "at1").unwrap();
        assert_eq!(model.row("issue")[column], Cell::Float(1_709_294_400_000.0));
        let column = model.spec("issue").unwrap().columns.iter().position(|c| c.name == "f1").unwrap();
        assert_eq!(model.row("issue")[column], Cell::Float(std::f64::consts::PI));
    }
}

/// Nobody waits for somebody else's open transaction, whatever it did to another table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_transactions_hold_nobody_up() {
    for server in [Server::V15, Server::V18] {
        let setup = format!(
            "{MARK}{ISSUE} CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE third (id int PRIMARY KEY);
             CREATE SCHEMA private; CREATE TABLE private.t (id int PRIMARY KEY);
             CREATE TABLE part (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
             CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (10); CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (10) TO (20)"
        );
        let fixture = Fixture::on(server, &setup).await;
        let (mut model, mut stream) = started(&fixture).await;
        let (temporary, first, second) = (hasty(&fixture).await, hasty(&fixture).await, hasty(&fixture).await);
        temporary
            .batch_execute(
                "BEGIN; CREATE TEMP TABLE x (id int PRIMARY KEY, n serial); CREATE INDEX ON x (n); ALTER TABLE x ADD COLUMN m int;
                 CREATE TEMP TABLE y AS SELECT 1 AS id; DROP TABLE y",
            )
            .await
            .unwrap();
        // Temporary objects keep nobody from changing publications either.
        second.batch_execute("ALTER PUBLICATION _zero_public_0 ADD TABLES IN SCHEMA private").await.unwrap();
        first
            .batch_execute("BEGIN; ALTER TABLE issue ADD COLUMN n int; CREATE TABLE mine (id int PRIMARY KEY); CREATE INDEX ON part_a (n)")
            .await
            .unwrap();
        second
            .batch_execute(
                "BEGIN; ALTER TABLE other ADD COLUMN n int; CREATE INDEX ON other (n); CREATE INDEX ON part_b (n)",
            )
            .await
            .unwrap();
        hasty(&fixture)
            .await
            .batch_execute(
                "CREATE TABLE theirs (id int PRIMARY KEY); ALTER TABLE third ADD COLUMN n int; DROP TABLE private.t;
                 CREATE PUBLICATION unrelated FOR TABLES IN SCHEMA private; DROP PUBLICATION unrelated",
            )
            .await
            .unwrap();
        second.batch_execute("COMMIT; INSERT INTO other VALUES (1, 1)").await.unwrap();
        first.batch_execute("INSERT INTO mine VALUES (1); COMMIT; UPDATE issue SET n = 1").await.unwrap();
        temporary.batch_execute("COMMIT").await.unwrap();
        catch_up(&mut stream, &mut model, &fixture.client).await;
        assert_equals_copy(&model, &fixture.postgres).await;
    }
}

/// A table that is made while its schema joins the publication is seen by one of the two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_joins_while_a_table_is_made_in_it() {
    let (fixture, mut model, mut stream) = start("CREATE SCHEMA late;").await;
    let (making, joining) = (hasty(&fixture).await, hasty(&fixture).await);
    making
        .batch_execute("BEGIN; CREATE TABLE late.t (id int PRIMARY KEY); INSERT INTO late.t VALUES (1)")
        .await
        .unwrap();
    let join = joining.batch_execute("ALTER PUBLICATION _zero_public_0 ADD TABLES IN SCHEMA late");
    let (joined, made) = tokio::join!(join, async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        making.batch_execute("COMMIT").await
    });
    joined.unwrap();
    made.unwrap();
    catch_up(&mut stream, &mut model, &fixture.client).await;
    apply_until(&mut stream, &mut model, |model| model.spec("late.t").is_some()).await;
    assert_eq!(model.row("late.t"), &[Cell::Int(1)]);
}

/// A statement costs what it changed, not what there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_among_many_tables_writes_little() {
    let fixture = Fixture::start(&format!(
        "{MARK}{ISSUE} DO $$ BEGIN FOR i IN 1..300 LOOP
           EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY, a text, b timestamptz, c jsonb, d numeric, e int)', i);
         END LOOP; END $$"
    ))
    .await;
    let (mut model, mut stream) = started(&fixture).await;
    let position = "SELECT pg_current_wal_lsn()::text";
    let before: String = fixture.client.query_one(position, &[]).await.unwrap().get(0);
    fixture.run("ALTER TABLE t5 ADD COLUMN n int").await;
    fixture.run("CREATE TABLE fresh (id int PRIMARY KEY)").await;
    fixture.run("CREATE INDEX ON t9 (a)").await;
    fixture.run("DROP TABLE t7").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    let bytes: i64 = fixture
        .client
        .query_one("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1::text::pg_lsn)::int8", &[&before])
        .await
        .unwrap()
        .get(0);
    // Pages that are changed the first time after a checkpoint are most of it; one description of all tables is 400 kB.
    assert!(bytes < 400_000, "{bytes}");
    assert_equals_copy(&model, &fixture.postgres).await;
    // Put together again from differences.
    let before = model.version;
    drop(stream);
    fixture.run("ALTER TABLE t8 ADD COLUMN n int").await;
    let resume =
        upstream::Resume { replica: fixture_version(&fixture).await, after: before, confirmed: before, time_us: None };
    let mut stream = Stream::start(&fixture.options, resume).await.unwrap();
    fixture
        .run("INSERT INTO t5 (id, n) VALUES (1, 1); INSERT INTO t8 (id, n) VALUES (1, 1); INSERT INTO fresh VALUES (1)")
        .await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_equals_copy(&model, &fixture.postgres).await;
}

/// The version of the copy that the stream continues.
async fn fixture_version(fixture: &Fixture) -> rows::Version {
    let row = fixture.client.query_one("SELECT version FROM zero_0.replicas", &[]).await.unwrap();
    row.get::<_, &str>(0).parse().unwrap()
}

/// What migration tools do to begin afresh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_is_made_anew_is_published_again() {
    let reset = "DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TABLE anew (id int PRIMARY KEY, v text); INSERT INTO anew VALUES (1, 'a')";
    let (fixture, mut model, mut stream) = start("").await;
    fixture.run(&format!("{reset}; {MARK}")).await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    settle(&mut stream, &mut model, &fixture.postgres).await;
    assert_eq!(model.row("anew").len(), 2);
    assert!(model.spec("issue").is_none());
    // The same while nobody streams, in one transaction, with tables that come with the schema.
    let (replica, after) = (fixture_version(&fixture).await, model.version);
    drop(stream);
    fixture
        .run(&format!(
            "BEGIN; DROP SCHEMA public CASCADE; CREATE SCHEMA public CREATE TABLE inner_one (id int PRIMARY KEY); INSERT INTO public.inner_one VALUES (5);
             {MARK} COMMIT"
        ))
        .await;
    let mut stream =
        Stream::start(&fixture.options, upstream::Resume { replica, after, confirmed: after, time_us: None })
            .await
            .unwrap();
    catch_up(&mut stream, &mut model, &fixture.client).await;
    settle(&mut stream, &mut model, &fixture.postgres).await;
    assert_eq!(model.row("inner_one"), &[Cell::Int(5)]);
    // Without triggers, the next start sees to it.
    let after = model.version;
    drop(stream);
    fixture
        .run(&format!(
            "ALTER EVENT TRIGGER zero_ddl_end_0 DISABLE; ALTER EVENT TRIGGER zero_ddl_drop_0 DISABLE; {reset}; {MARK}"
        ))
        .await;
    let mut stream =
        Stream::start(&fixture.options, upstream::Resume { replica, after, confirmed: after, time_us: None })
            .await
            .unwrap();
    // A mark that is set before would be among the contents that are read.
    apply_until(&mut stream, &mut model, |model| model.spec("inner_one").is_none() && model.spec("mark").is_some())
        .await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    settle(&mut stream, &mut model, &fixture.postgres).await;
}

/// With everything published and our records in the same database, nothing that a server writes comes back to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_do_not_follow_their_own_writes() {
    let fixture = Fixture::start(&format!(
        "{MARK}{ISSUE} CREATE PUBLICATION everything FOR ALL TABLES; CREATE SCHEMA \"zero_0/cdc\"; CREATE TABLE \"zero_0/cdc\".log (id bigserial PRIMARY KEY, change text);
         CREATE SCHEMA zero_1; CREATE TABLE zero_1.\"shardConfig\" (id int PRIMARY KEY); CREATE TABLE zero_1.replicas (id int PRIMARY KEY)"
    ))
    .await;
    let mut options = fixture.options.clone();
    options.publications = vec!["everything".to_owned()];
    let (plan, mut model) = copied(&options).await;
    let mut stream = Stream::start(&options, resume(&plan, plan.version)).await.unwrap();
    fixture
        .run(
            "CREATE SCHEMA \"zero_0/cvr\"; CREATE TABLE \"zero_0/cvr\".rows (id bigserial PRIMARY KEY, v text); CREATE SCHEMA plain; CREATE TABLE plain.t (id int PRIMARY KEY);
             INSERT INTO \"zero_0/cdc\".log (change) SELECT repeat('x', 1000) FROM generate_series(1, 1000); INSERT INTO \"zero_0/cvr\".rows (v) VALUES ('x');
             TRUNCATE \"zero_0/cdc\".log; INSERT INTO zero_1.replicas VALUES (1); INSERT INTO plain.t VALUES (1)",
        )
        .await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    let mut names: Vec<String> = model.tables.values().map(|(table, _)| table.wire_name()).collect();
    names.sort();
    assert_eq!(names, ["issue", "mark", "plain.t", "zero.permissions", "zero_0.clients", "zero_0.mutations"]);
    assert_eq!(model.row("plain.t"), &[Cell::Int(1)]);
    // Acknowledged positions are remembered in a table that is published: that must not be news.
    let quiet = tokio::time::timeout(Duration::from_secs(2), async {
        loop {
            match stream.next().await.unwrap() {
                Event::Keepalive { lsn } => stream.acks().ack(lsn),
                Event::Transaction(transaction) => panic!("{transaction:?}"),
            }
        }
    });
    assert!(quiet.await.is_err());
}

/// Postgres does not say that part of a table was truncated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_truncated_partition_leave() {
    let (fixture, mut model, mut stream) = start(
        "CREATE TABLE part (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (10);
         CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (10) TO (30) PARTITION BY RANGE (id);
         CREATE TABLE part_b1 PARTITION OF part_b FOR VALUES FROM (10) TO (20); INSERT INTO part VALUES (1), (2), (11), (12);",
    )
    .await;
    // A look that fails, for as long as somebody has taken the function away, is repeated.
    let failures = || logged().lock().unwrap().matches("cannot look for truncated partitions").count();
    let before = failures();
    fixture.run("ALTER FUNCTION zero_0.check_partitions() RENAME TO taken_away").await;
    while failures() == before {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fixture.run("ALTER FUNCTION zero_0.taken_away() RENAME TO check_partitions").await;
    // The first is noticed by the running stream, the second one by the next start.
    fixture.run("TRUNCATE part_a").await;
    apply_until(&mut stream, &mut model, |model| model.sorted("part").len() == 2).await;
    let (replica, after) = (fixture_version(&fixture).await, model.version);
    drop(stream);
    fixture.run("TRUNCATE part_b1; INSERT INTO part VALUES (3), (13)").await;
    let mut stream =
        Stream::start(&fixture.options, upstream::Resume { replica, after, confirmed: after, time_us: None })
            .await
            .unwrap();
    for statement in [
        "INSERT INTO part VALUES (14)",
        "ALTER TABLE part DETACH PARTITION part_b",
        "INSERT INTO part_b VALUES (15)",
        "ALTER TABLE part ATTACH PARTITION part_b FOR VALUES FROM (10) TO (30)",
        "ALTER TABLE part ADD COLUMN n text; UPDATE part SET n = 'x'",
        "ALTER TABLE part ALTER COLUMN n TYPE text USING 'y' || n",
        "DROP TABLE part_b1",
        "TRUNCATE part; INSERT INTO part (id) VALUES (5)",
    ] {
        fixture.run(statement).await;
        catch_up(&mut stream, &mut model, &fixture.client).await;
        println!("{statement}");
        settle(&mut stream, &mut model, &fixture.postgres).await;
    }
}

/// Functions and triggers of the same names that another release left, of other types and with overloads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_release_set_up_is_replaced() {
    let fixture = Fixture::start(&format!(
        "{MARK}{ISSUE} CREATE SCHEMA zero_0; CREATE TABLE zero_0.\"publishedSchema\" (current json);
         CREATE FUNCTION zero_0.schema_specs() RETURNS json LANGUAGE sql AS $$ SELECT '{{}}'::json $$;
         CREATE FUNCTION zero_0.get_trigger_context() RETURNS record LANGUAGE sql AS $$ SELECT 1, 2 $$;
         CREATE FUNCTION zero_0.update_schemas(event_type text, tag text, target record) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'old'; END $$;
         CREATE FUNCTION zero_0.update_schemas() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'old'; END $$;
         CREATE FUNCTION zero_0.emit_ddl_start() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'old'; END $$;
         CREATE FUNCTION zero_0.emit_ddl_end() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'old'; END $$;
         CREATE EVENT TRIGGER zero_ddl_start_0 ON ddl_command_start EXECUTE FUNCTION zero_0.emit_ddl_start();
         CREATE EVENT TRIGGER zero_ddl_end_0 ON ddl_command_end EXECUTE FUNCTION zero_0.emit_ddl_end();"
    ))
    .await;
    let (mut model, mut stream) = started(&fixture).await;
    fixture.run("ALTER TABLE issue ADD COLUMN n int DEFAULT 5; SELECT zero_0.update_schemas()").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_equals_copy(&model, &fixture.postgres).await;
    let (replica, after) = (fixture_version(&fixture).await, model.version);
    let resume = upstream::Resume { replica, after, confirmed: after, time_us: None };
    drop(stream);
    // What is right stays, what somebody replaced does not.
    let functions = "SELECT array_agg(oid ORDER BY oid) FROM pg_proc WHERE pronamespace = 'zero_0'::regnamespace";
    let installed: Vec<u32> = fixture.client.query_one(functions, &[]).await.unwrap().get(0);
    let stream = Stream::start(&fixture.options, resume).await.unwrap();
    assert_eq!(fixture.client.query_one(functions, &[]).await.unwrap().get::<_, Vec<u32>>(0), installed);
    drop(stream);
    fixture.run("CREATE OR REPLACE FUNCTION zero_0.update_schemas() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'old'; END $$").await;
    let _stream = Stream::start(&fixture.options, resume).await.unwrap();
    fixture.run("SELECT zero_0.update_schemas()").await;
}

/// What will fail again ends with what to do, and changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_up_that_cannot_work_is_not_tried_again() {
    let fixture =
        Fixture::start(&format!("{MARK}{ISSUE} CREATE SCHEMA zero_0; CREATE VIEW zero_0.clients AS SELECT 1 AS a;"))
            .await;
    let (sender, _receiver) = tokio::sync::mpsc::channel(1);
    let error = upstream::initial_copy(&fixture.options, sender).await.unwrap_err();
    assert!(
        matches!(&error, Error::Configuration { message, .. } if message.contains("nothing was changed")),
        "{error:?}"
    );
    let left = "SELECT count(*) FROM pg_class WHERE relnamespace = 'zero_0'::regnamespace";
    assert_eq!(fixture.client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 1);
}

/// Any role may emit logical messages; only ours tell of schema changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_messages_have_no_effect() {
    let (fixture, mut model, mut stream) =
        start("CREATE ROLE forger LOGIN; GRANT CREATE, USAGE ON SCHEMA public TO forger;").await;
    for message in [
        r#"{"type":"schema","version":1,"tag":"DROP TABLE","schema":{"tables":[]}}"#,
        r#"{"type":"tables","tag":"DROP TABLE","tables":[],"gone":[1,2,3]}"#,
        r#"{"type":"error","version":1,"tag":"x","message":"y"}"#,
        r#"{"type":"?"}"#,
        "{",
        "",
    ] {
        let sql = "SET ROLE forger; SELECT pg_logical_emit_message(true, 'zero/0/ddl', $$";
        fixture.run(&format!("{sql}{message}$$); RESET ROLE")).await;
    }
    let refused = fixture
        .client
        .batch_execute("SET ROLE forger; INSERT INTO zero_0.\"schemaEvents\" (event) VALUES ('{}')")
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE));
    fixture.run("RESET ROLE").await;
    // The next start takes them for no more than the running stream does.
    catch_up(&mut stream, &mut model, &fixture.client).await;
    let (replica, after) = (fixture_version(&fixture).await, model.version);
    drop(stream);
    fixture
        .run(
            "SET ROLE forger; SELECT pg_logical_emit_message(true, 'zero/0/ddl', '{\"type\":\"error\"}'); RESET ROLE;
             ALTER EVENT TRIGGER zero_ddl_end_0 DISABLE",
        )
        .await;
    let mut stream =
        Stream::start(&fixture.options, upstream::Resume { replica, after, confirmed: after, time_us: None })
            .await
            .unwrap();
    // Nor does what the owner writes by hand end the stream.
    for event in [
        "{",
        "[]",
        r#"{"type":"?"}"#,
        r#"{"type":"tables","tables":[{}],"gone":["x"]}"#,
        r#"{"type":"tables","tables":[{"oid":7}]}"#,
    ] {
        fixture.run(&format!("INSERT INTO zero_0.\"schemaEvents\" (event) VALUES ($${event}$$)")).await;
    }
    fixture.run("DELETE FROM zero_0.\"schemaEvents\"; INSERT INTO issue VALUES (2, 'two')").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_equals_copy(&model, &fixture.postgres).await;
}

/// The log may still hold what the functions of a former release said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_former_release_are_understood() {
    let fixture = Fixture::start(&format!("{MARK}{ISSUE}")).await;
    let (plan, mut model) = copied(&fixture.options).await;
    fixture
        .run(
            "DROP EVENT TRIGGER zero_ddl_end_0; DROP EVENT TRIGGER zero_ddl_drop_0; DROP EVENT TRIGGER zero_ddl_rewrite_0;
             UPDATE zero_0.\"shardConfig\" SET \"messagesUntil\" = NULL;
             BEGIN; ALTER TABLE issue ADD COLUMN n int DEFAULT 7;
             SELECT pg_logical_emit_message(true, 'zero/0/ddl', json_build_object('type', 'schema', 'version', 1, 'tag', 'ALTER TABLE',
               'schema', zero_0.schema_specs()::json)::text);
             INSERT INTO issue VALUES (2, 'two', 8); COMMIT;
             BEGIN; UPDATE issue SET n = n + 1;
             SELECT pg_logical_emit_message(true, 'zero/0/ddl', json_build_object('type', 'rewrite', 'version', 1, 'oid', 'issue'::regclass::oid::int8)::text); COMMIT",
        )
        .await;
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    fixture.run("ALTER TABLE issue ADD COLUMN m int; INSERT INTO issue VALUES (3, 'three', 9, 9)").await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    settle(&mut stream, &mut model, &fixture.postgres).await;
}
