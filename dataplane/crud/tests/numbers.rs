//! Numbers of mutations: used once, in order, whatever fails.

use std::time::Duration;

use crud::{Options, Outcome};
use serde_json::json;
use testkit::pgbouncer::PgBouncer;
use testkit::proxy::Proxy;

use crate::world::{World, op, open};

const SETUP: &str = "CREATE TABLE t (id text PRIMARY KEY, n int NOT NULL DEFAULT 0); INSERT INTO t VALUES ('a');";
/// What a client sets, the trigger makes an increment, so that nothing lost or done twice can hide.
const COUNTER: &str =
    "CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.n := OLD.n + 1; RETURN NEW; END';
    CREATE TRIGGER bump BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION bump()";

#[tokio::test]
async fn what_was_applied_is_not_applied_again_and_nothing_is_skipped() {
    let world = World::new("crud_numbers", SETUP, &open(&["t"])).await;
    let nobody = json!(null);
    let ops = |n: i32| json!([op("update", json!({"id": "a", "n": n}))]);
    for (client, id, expected) in [
        ("x", 1, Outcome::Applied),
        ("x", 1, Outcome::AlreadyDone),
        ("x", 3, Outcome::OutOfOrder { expected: 2 }),
        ("x", 2, Outcome::Applied),
        ("x", 0, Outcome::AlreadyDone),
        ("y", 2, Outcome::OutOfOrder { expected: 1 }),
        ("y", 1, Outcome::Applied),
    ] {
        assert_eq!(world.apply_numbered(client, id, &nobody, &ops(id as i32)).await, expected, "{client} {id}");
    }
    assert_eq!((world.number("x").await, world.number("y").await), (2, 1));
    // Not even when it would fail otherwise.
    let bad = json!([op("insert", json!({"id": null}))]);
    assert_eq!(world.apply_numbered("x", 2, &nobody, &bad).await, Outcome::AlreadyDone);
    assert_eq!(world.apply_numbered("x", 4, &nobody, &bad).await, Outcome::OutOfOrder { expected: 3 });
}

#[tokio::test]
async fn a_mutation_that_others_take_part_in_waits_a_little_for_them() {
    let world = World::with("crud_gap", SETUP, &open(&["t"]), |o| Options { has_custom: true, ..o }).await;
    let nobody = json!(null);
    let ops = json!([op("update", json!({"id": "a", "n": 9}))]);
    let other = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        world.run("INSERT INTO zero_0.clients VALUES ('g', 'x', 1, NULL)").await;
    };
    let (outcome, ()) = tokio::join!(world.apply_numbered("x", 2, &nobody, &ops), other);
    assert_eq!(outcome, Outcome::Applied);
    assert_eq!(world.apply_numbered("x", 4, &nobody, &ops).await, Outcome::OutOfOrder { expected: 3 });
}

#[tokio::test]
async fn many_who_change_the_same_rows_all_succeed() {
    let world = World::new("crud_conflicts", SETUP, &open(&["t"])).await;
    world.run(COUNTER).await;
    let nobody = json!(null);
    let client = |name: String| {
        let (world, nobody) = (&world, &nobody);
        async move {
            for id in 1..=10 {
                let ops = json!([op("update", json!({"id": "a", "n": 0}))]);
                assert_eq!(world.apply_numbered(&name, id, nobody, &ops).await, Outcome::Applied);
            }
        }
    };
    futures_util::future::join_all((0..12).map(|n| client(format!("c{n}")))).await;
    assert_eq!(world.ask("SELECT n FROM t").await.as_deref(), Some("120"));
}

/// Connections are cut while mutations are under way, also between a commit and its answer: each is sent again until it is known to be
/// done, and the sum is exact.
#[tokio::test]
async fn a_ledger_survives_lost_connections() {
    let port = testkit::postgres::Postgres::shared(testkit::postgres::Version::V15).unwrap().port();
    let relay = Proxy::relay(port).await.unwrap();
    let through = relay.port();
    let world = World::new("crud_ledger", SETUP, &open(&["t"])).await;
    let address = format!("postgres://postgres@127.0.0.1:{through}/{}?sslmode=disable", world.database.name);
    let options = Options {
        address: address.parse().unwrap(),
        app: upstream::App::new("zero", 0).unwrap(),
        connections_max: 4,
        has_custom: false,
    };
    let metrics = crud::Metrics::register(&prometheus::Registry::new()).unwrap();
    let world = World { writer: crud::Writer::new(options, metrics), ..world };
    world.run(COUNTER).await;
    let nobody = json!(null);
    let client = |name: String| {
        let (world, nobody) = (&world, &nobody);
        async move {
            for id in 1..=15 {
                let ops = json!([op("update", json!({"id": "a", "n": 0}))]);
                loop {
                    match world.apply_numbered(&name, id, nobody, &ops).await {
                        Outcome::Applied | Outcome::AlreadyDone => break,
                        Outcome::Unavailable(_) => {}
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
    };
    let clients = futures_util::future::join_all((0..4).map(|n| client(format!("c{n}"))));
    let cutting = async {
        loop {
            tokio::time::sleep(Duration::from_millis(rand::random_range(5..60))).await;
            relay.cut_all();
        }
    };
    tokio::select! {
        _ = clients => {}
        () = cutting => {}
    }
    assert_eq!(world.ask("SELECT n FROM t").await.as_deref(), Some("60"));
}

#[tokio::test]
async fn settings_of_the_role_and_a_pooler_change_nothing() {
    let postgres = testkit::postgres::Postgres::shared(testkit::postgres::Version::V15).unwrap();
    let world = World::new("crud_settings", SETUP, &open(&["t"])).await;
    world.run("CREATE TABLE noted (id text, path text, zone text);
        CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN
          INSERT INTO noted VALUES (NEW.id, current_setting(''search_path''), current_setting(''timezone'')); RETURN NEW; END';
        CREATE TRIGGER note BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION note();
        CREATE FUNCTION public.never(text, text) RETURNS bool LANGUAGE sql AS 'SELECT false';
        CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.never)").await;
    for setting in [
        "search_path = public, pg_catalog",
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'read committed'",
        "statement_timeout = '1ms'",
        "\"DateStyle\" = 'SQL, DMY'",
        "timezone = 'Asia/Tokyo'",
        "standard_conforming_strings = off",
    ] {
        world.run(&format!("ALTER DATABASE \"{}\" SET {setting}", world.database.name)).await;
    }
    let pooler = PgBouncer::start(postgres, 2).unwrap();
    let options = Options {
        address: pooler.url(&world.database.name).parse().unwrap(),
        app: upstream::App::new("zero", 0).unwrap(),
        connections_max: 6,
        has_custom: false,
    };
    let metrics = crud::Metrics::register(&prometheus::Registry::new()).unwrap();
    let world = World { writer: crud::Writer::new(options, metrics), ..world };
    let nobody = json!(null);
    let all = (0..12).map(|n| {
        let (world, nobody) = (&world, &nobody);
        async move {
            let name = format!("p{n}");
            let insert = json!([op("insert", json!({"id": name, "n": n}))]);
            assert_eq!(world.apply_numbered(&name, 1, nobody, &insert).await, Outcome::Applied);
            let change = json!([op("update", json!({"id": name, "n": n + 1}))]);
            assert_eq!(world.apply_numbered(&name, 2, nobody, &change).await, Outcome::Applied);
        }
    });
    futures_util::future::join_all(all).await;
    assert_eq!(world.ask("SELECT sum(n) FROM t").await.as_deref(), Some("78"));
    // The application's triggers see what their owner configured.
    assert_eq!(
        world.ask("SELECT DISTINCT path || ' ' || zone FROM noted").await.as_deref(),
        Some("public, pg_catalog Asia/Tokyo")
    );
}
