//! What is set for the database of the CVR does not reach its statements.

use std::time::Duration;

use crate::client::{Store, put};
use crate::data::all;
use crate::world::{World, again, init, shared};

#[tokio::test]
async fn settings_of_the_database_change_nothing() {
    let database = shared().create_database("cvr_settings").await.unwrap();
    // Was connected before, so nothing of it is set here.
    let other = database.connect().await.unwrap();
    for setting in [
        "statement_timeout = '300ms'",
        "lock_timeout = '100ms'",
        "idle_in_transaction_session_timeout = '300ms'",
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "search_path = 'bait'",
        "\"DateStyle\" = 'German'",
        "standard_conforming_strings = off",
    ] {
        other.batch_execute(&format!("ALTER DATABASE \"{}\" SET {setting}", database.name)).await.unwrap();
    }
    let mut world = World::on(&database.url()).await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    // A statement that waits for longer than any of these allows.
    let schema = world.cvr_schema.clone();
    other.batch_execute(&format!("BEGIN; LOCK TABLE \"{schema}\".deltas IN ACCESS EXCLUSIVE MODE")).await.unwrap();
    world.issue("i2", "a", 2).await;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    other.batch_execute("COMMIT").await.unwrap();
    let expected = world.expected([&all("issue")]);
    c.until("everything", |s| s.rows == expected).await;
    assert_eq!(world.metrics().cvr_flush_failures.get(), 0);
    let store = c.cut();
    world.kill();
    world.start().await;
    let mut c = world.connect("g", "c1", store, again(&[]));
    assert!(c.poke().await.parts.is_empty());
}
