//! Lookups that upstream has no index for.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use crate::client::{Store, put};
use crate::data::all;
use crate::world::{World, init, issue};

const ROWS: usize = 3_000;

async fn filled() -> World {
    let mut world = World::new().await;
    let mut changes = Vec::new();
    for n in 0..ROWS {
        changes.push(world.put("issue", issue(&format!("i{n}"), "a", 1)));
        let comment = json!({"id": format!("m{n}"), "issueID": format!("i{}", (n * 7) % ROWS), "body": "x"});
        changes.push(world.put("comment", comment));
    }
    world.apply(changes).await;
    world.api.ask("issues", all("issue").with());
    world.api.ask("others", all("issue").by("owner", "a").with());
    world
}

#[tokio::test]
async fn an_index_is_wished_for_once_and_made_before_the_query_runs() {
    let mut world = filled().await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("issues", 1000)]));
    let wanted = world.wanted_index().await;
    assert_eq!((wanted.table.as_str(), &wanted.columns[..]), ("comment", &["issueID".to_owned()][..]));
    c.drain(Duration::from_millis(300)).await;
    assert!(c.store.rows.is_empty() && !c.store.got.contains("issues"), "the query waits for its index");
    assert!(world.writer.ensure_index("comment", &["issueID"]).unwrap());
    drop(wanted);
    c.until("all", |s| s.rows.len() == 2 * ROWS).await;
    // What comes later finds it; changes are followed through it.
    c.change(json!([put("others", 1000)]));
    c.until("the other", |s| s.got.len() == 2).await;
    assert!(
        timeout(Duration::from_millis(200), world.wanted_index()).await.is_err(),
        "there is nothing more to wish for"
    );
    world.upsert("comment", json!({"id": "new", "issueID": "i5", "body": "x"})).await;
    c.until("the new row", |s| s.rows.len() == 2 * ROWS + 1).await;
}

#[tokio::test]
async fn without_the_index_a_query_is_served_all_the_same() {
    let world = filled().await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("issues", 1000)]));
    // Refused.
    drop(world.wanted_index().await);
    c.until("all", |s| s.rows.len() == 2 * ROWS).await;
    // Small tables are read as they are.
    assert!(timeout(Duration::from_millis(200), world.wanted_index()).await.is_err());
}
