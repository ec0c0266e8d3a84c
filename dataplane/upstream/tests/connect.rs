//! Connections: to the right server, with our own settings, noticed when they are dead.

use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use testkit::postgres::{Options as ServerOptions, Postgres, Version as Server};
use testkit::proxy::Proxy;
use tokio::sync::mpsc;
use tokio_postgres::Client;
use upstream::{Address, CopyMessage, Encodings, Error, Event, Options, Stream, check_encoding, connect, initial_copy};

use crate::model::{Fixture, MARK, catch_up, copied, options, resume, resume_at, settle};

const PATIENCE: Duration = Duration::from_millis(500);

fn as_role(fixture: &Fixture, role: &str) -> Options {
    let url = fixture.postgres.url("postgres").replace("postgres@", &format!("{role}@"));
    Options { address: url.parse().unwrap(), ..fixture.options.clone() }
}

async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn failure(options: &Options) -> Error {
    let (sender, _receiver) = mpsc::channel(1);
    initial_copy(options, sender).await.unwrap_err()
}

/// What was logged by this process, for what can be seen nowhere else.
pub fn logged() -> &'static Mutex<String> {
    static LINES: OnceLock<Mutex<String>> = OnceLock::new();
    LINES.get_or_init(|| {
        tracing::subscriber::set_global_default(Lines).unwrap();
        Mutex::default()
    })
}

struct Lines;

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO && metadata.target().starts_with("upstream")
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = String::new();
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            line.push_str(&format!("{field}={value:?} "));
        });
        let mut lines = logged().lock().unwrap();
        lines.push_str(&line);
        lines.push('\n');
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Everything that `ALTER ROLE ... SET` can do to us, at once.
const HARSH: &str = "CREATE ROLE harsh LOGIN SUPERUSER;
     ALTER ROLE harsh SET statement_timeout = '1s'; ALTER ROLE harsh SET lock_timeout = '1ms';
     ALTER ROLE harsh SET idle_in_transaction_session_timeout = '1s'; ALTER ROLE harsh SET idle_session_timeout = '1s';
     ALTER ROLE harsh SET \"DateStyle\" = 'German'; ALTER ROLE harsh SET \"IntervalStyle\" = 'sql_standard';
     ALTER ROLE harsh SET \"TimeZone\" = 'Asia/Kathmandu'; ALTER ROLE harsh SET extra_float_digits = -5;
     ALTER ROLE harsh SET bytea_output = 'escape'; ALTER ROLE harsh SET xmlbinary = 'hex';
     ALTER ROLE harsh SET default_transaction_read_only = on; ALTER ROLE harsh SET default_transaction_deferrable = on;
     ALTER ROLE harsh SET default_transaction_isolation = 'serializable'; ALTER ROLE harsh SET search_path = 'bait';
     ALTER ROLE harsh SET standard_conforming_strings = off; ALTER ROLE harsh SET quote_all_identifiers = on;
     ALTER ROLE harsh SET session_replication_role = 'replica'; ALTER ROLE harsh SET client_encoding = 'LATIN1';
     CREATE SCHEMA bait; CREATE TABLE bait.mark (n int); CREATE TYPE bait.oid AS ENUM ('x');";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_role_sets_does_not_reach_us() {
    let fixture = Fixture::start(&format!(
        "{MARK} {HARSH} CREATE TABLE t (id int PRIMARY KEY, at timestamptz, d date, i interval, f float8, b bytea, s text, dates date[]);
         INSERT INTO t SELECT n, '2024-03-01 12:00:00+00', '2024-03-01', '1 mon 2 days', 3.141592653589793, '\\x0001ff', repeat('é', 300),
           ARRAY['2024-03-01'::date] FROM generate_series(1, 60000) n"
    ))
    .await;
    let harsh = as_role(&fixture, "harsh");
    // The receiver is slow: every statement of the copy, and the session that holds the snapshot, last for long.
    let (sender, mut receiver) = mpsc::channel(1);
    let copy = tokio::spawn({
        let harsh = harsh.clone();
        async move { initial_copy(&harsh, sender).await }
    });
    assert!(matches!(receiver.recv().await, Some(CopyMessage::Plan(_))));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    while receiver.recv().await.is_some() {}
    copy.await.unwrap().unwrap();
    let (plan, mut model) = copied(&harsh).await;
    let mut stream = Stream::start(&harsh, resume(&plan, plan.version)).await.unwrap();
    fixture
        .run(
            "INSERT INTO t SELECT n, now(), '1999-12-31', '-1 year 3 hours', random(), '\\xff00', 'x\\y', ARRAY['2001-02-03'::date]
             FROM generate_series(60001, 61000) n;
             ALTER TABLE t ADD COLUMN r float8 DEFAULT random()",
        )
        .await;
    catch_up(&mut stream, &mut model, &fixture.client).await;
    settle(&mut stream, &mut model, &fixture.postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_a_policy_hides_are_refused_by_name() {
    let fixture = Fixture::start(&format!(
        "{MARK} INSERT INTO mark SELECT generate_series(1, 10); CREATE PUBLICATION mine FOR TABLE mark;
         CREATE ROLE limited LOGIN REPLICATION; GRANT CREATE ON DATABASE postgres TO limited;
         GRANT SELECT ON mark TO limited; ALTER TABLE mark ENABLE ROW LEVEL SECURITY"
    ))
    .await;
    let limited = Options { publications: vec!["mine".to_owned()], ..as_role(&fixture, "limited") };
    let error = failure(&limited).await;
    let part = "row-level security hides rows of public.mark from the role limited";
    assert!(matches!(&error, Error::Configuration { message, .. } if message.contains(part)), "{error}");
    assert_eq!(text(&fixture.client, "SELECT count(*)::text FROM pg_replication_slots").await, "0");
    // Whatever is read by other ways is an error as well, never less than all.
    let client = connect(&limited.address, "test").await.unwrap();
    assert!(client.query("SELECT * FROM public.mark", &[]).await.is_err());
    fixture.run("ALTER ROLE limited BYPASSRLS").await;
    let (_, model) = copied(&limited).await;
    assert_eq!(model.sorted("mark").len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_of_other_encodings_are_converted_or_refused() {
    let fixture = Fixture::start("").await;
    let in_database = |name: &str| {
        let url = fixture.postgres.url(name);
        Options { address: url.parse().unwrap(), ..fixture.options.clone() }
    };
    for encoding in ["LATIN1", "SQL_ASCII"] {
        fixture
            .run(&format!(
                "CREATE DATABASE {encoding} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
            ))
            .await;
    }
    let error = failure(&in_database("sql_ascii")).await;
    assert!(matches!(&error, Error::Configuration { message, .. } if message.contains("SQL_ASCII")), "{error}");

    let latin = in_database("latin1");
    let client = fixture.postgres.connect("latin1").await.unwrap();
    client.batch_execute(&format!("{MARK} CREATE TYPE size AS ENUM ('größer'); CREATE TABLE t (id int PRIMARY KEY, s text, z size); INSERT INTO t VALUES (1, 'é', 'größer')")).await.unwrap();
    let (plan, mut model) = copied(&latin).await;
    let mut stream = Stream::start(&latin, resume(&plan, plan.version)).await.unwrap();
    client
        .batch_execute(
            "INSERT INTO t VALUES (2, 'ü'); ALTER TABLE t ADD COLUMN n int; INSERT INTO t VALUES (3, 'ß', 'größer', 4)",
        )
        .await
        .unwrap();
    catch_up(&mut stream, &mut model, &client).await;
    let rows = model.sorted("t").join("\n");
    assert!(["é", "ü", "ß", "größer"].iter().all(|letter| rows.contains(letter)), "{rows}");
    let refused = check_encoding(&client, "ZERO_CVR_DB", Encodings::All).await.unwrap_err();
    assert!(refused.to_string().contains("LATIN1"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_holds_the_start_up_is_named_and_waited_for() {
    let lines = logged();
    let fixture = Fixture::start(MARK).await;
    let mut patient = fixture.options.clone();
    patient.address = patient.address.with_patience(PATIENCE);
    let holder = fixture.postgres.connect("postgres").await.unwrap();
    holder.batch_execute("SET application_name = 'forgetful'; BEGIN; INSERT INTO mark VALUES (7)").await.unwrap();
    let pid: i32 = holder.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let copy = tokio::spawn(async move { copied(&patient).await });
    let named = format!("pid={pid} user=\"postgres\" application=\"forgetful\" state=\"idle in transaction\"");
    while !lines.lock().unwrap().contains(&named) {
        assert!(!copy.is_finished());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    holder.batch_execute("COMMIT").await.unwrap();
    let (_, model) = copy.await.unwrap();
    assert_eq!(model.sorted("mark").len(), 1);
}

/// A proxy that takes everything and passes nothing on: the kernel sees nothing wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_dead_way_to_the_server_is_noticed_by_every_kind_of_connection() {
    let fixture = Fixture::start(&format!("{MARK} INSERT INTO mark SELECT generate_series(1, 400000)")).await;
    let port = fixture.postgres.port();
    let proxy = Proxy::relay(port).await.unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres?connect_timeout=1", proxy.port());
    let mut through = fixture.options.clone();
    through.address = url.parse::<Address>().unwrap().with_patience(PATIENCE);
    through.inbound_timeout = Some(PATIENCE * 2);
    let within = |work| tokio::time::timeout(Duration::from_secs(60), work);

    let (sender, mut receiver) = mpsc::channel(1);
    let copy = tokio::spawn({
        let through = through.clone();
        async move { initial_copy(&through, sender).await }
    });
    assert!(matches!(receiver.recv().await, Some(CopyMessage::Plan(_))));
    // A caller that is slow is none of the server's faults.
    tokio::time::sleep(PATIENCE * 3).await;
    assert!(!copy.is_finished());
    proxy.hold(port);
    let drained = tokio::spawn(async move { while receiver.recv().await.is_some() {} });
    let error = within(Box::pin(copy)).await.expect("the copy ends").unwrap().unwrap_err();
    assert!(matches!(error, Error::Transient { .. }), "{error}");
    drained.await.unwrap();
    proxy.release(port);

    // The attempt that was cut off holds its lock until the server notices.
    fixture.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'zero-%'").await;
    let (plan, _) = copied(&fixture.options).await;
    let client = connect(&through.address, "test").await.unwrap();
    let mut stream = Stream::start(&through, resume(&plan, plan.version)).await.unwrap();
    proxy.hold(port);
    let statement = tokio::time::timeout(Duration::from_secs(60), client.batch_execute("SELECT 1")).await;
    assert!(statement.expect("the statement ends").is_err());
    let ended = async {
        loop {
            if let Err(error) = stream.next().await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the stream ends");
    assert!(error.to_string().contains("sent nothing"), "{error}");
    // A server that is there and has nothing to say is asked, and answers.
    proxy.release(port);
    let mut quiet = fixture.options.clone();
    quiet.inbound_timeout = Some(PATIENCE);
    let mut stream = Stream::start(&quiet, resume(&plan, plan.version)).await.unwrap();
    let event = tokio::time::timeout(PATIENCE * 6, stream.next()).await;
    assert!(!matches!(event, Ok(Err(_))), "{event:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_hosts_lead_to_the_primary() {
    let fixture = Fixture::start(&format!("CREATE ROLE plain LOGIN; {MARK}")).await;
    let (plan, mut model) = copied(&fixture.options).await;
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    catch_up(&mut stream, &mut model, &fixture.client).await;
    drop(stream);
    fixture.postgres.stop().unwrap();
    let source = format!("primary_conninfo = 'host=127.0.0.1 port={} user=postgres'\n", fixture.postgres.port());
    let files = [("standby.signal", ""), ("postgresql.auto.conf", source.as_str())];
    let settings = vec![("wal_retrieve_retry_interval".to_owned(), "100ms".to_owned())];
    let standby = fixture.postgres.copy(ServerOptions { settings, ..ServerOptions::default() }, &files).unwrap();
    fixture.postgres.resume().unwrap();
    let nobody = testkit::free_ports(1).unwrap();
    let hosts = format!("127.0.0.1:{nobody},127.0.0.1:{},127.0.0.1:{}", standby.port(), fixture.postgres.port());
    let mut both = fixture.options.clone();
    both.address = format!("postgres://postgres@{hosts}/postgres?target_session_attrs=primary").parse().unwrap();
    let client = fixture.postgres.connect("postgres").await.unwrap();
    let mut stream = Stream::start(&both, resume_at(&plan, &model)).await.unwrap();
    catch_up(&mut stream, &mut model, &client).await;
    drop(stream);
    // A failover that loses nothing, to a server that has our slot: what was stored comes again there, on a timeline of its own.
    let there = standby.connect("postgres").await.unwrap();
    let current = text(&client, "SELECT pg_current_wal_lsn()::text").await;
    while there.query_one(&format!("SELECT pg_last_wal_replay_lsn() < '{current}'"), &[]).await.unwrap().get(0) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fixture.postgres.stop().unwrap();
    let error = connect(&both.address, "test").await.map(drop).unwrap_err();
    assert!(matches!(&error, Error::Transient { .. }), "{error}");
    there.batch_execute("SELECT pg_promote()").await.unwrap();
    let mut stream = Stream::start(&both, resume_at(&plan, &model)).await.unwrap();
    catch_up(&mut stream, &mut model, &there).await;
    assert_eq!(text(&there, "SELECT count(*)::text FROM mark").await, model.sorted("mark").len().to_string());
}

/// `*` means everybody who replicates, so us as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_commit_waits_for_us_as_a_standby() {
    let settings = vec![("synchronous_standby_names".to_owned(), "*".to_owned())];
    let postgres = Postgres::start_with(Server::V15, ServerOptions { settings, ..ServerOptions::default() }).unwrap();
    let client = postgres.connect("postgres").await.unwrap();
    client
        .batch_execute(&format!("SET synchronous_commit = local; {MARK} CREATE TABLE unpublished (n int)"))
        .await
        .unwrap();
    let options = Options { publications: vec!["mine".to_owned()], ..options(&postgres, "zero") };
    client.batch_execute("CREATE PUBLICATION mine FOR TABLE mark").await.unwrap();
    let (plan, mut model) = copied(&options).await;
    let mut stream = Stream::start(&options, resume(&plan, plan.version)).await.unwrap();
    catch_up(&mut stream, &mut model, &client).await;
    let acks = stream.acks();
    acks.ack(model.version);
    let acknowledging = tokio::spawn(async move {
        loop {
            match stream.next().await.unwrap() {
                Event::Transaction(transaction) => acks.ack(transaction.version),
                Event::Keepalive { lsn } => acks.ack(lsn),
            }
        }
    });
    // There is no other standby, so these wait for whoever says that it has them.
    let other = postgres.connect("postgres").await.unwrap();
    for table in ["mark", "unpublished"] {
        let sql = format!("INSERT INTO {table} VALUES (1000)");
        tokio::time::timeout(Duration::from_secs(60), other.batch_execute(&sql))
            .await
            .expect("the commit ends")
            .unwrap();
    }
    let state = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'zero-replicator'";
    assert_eq!(text(&client, state).await, "async");
    assert!(!acknowledging.is_finished());
    acknowledging.abort();
}
