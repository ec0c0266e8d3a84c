//! From connecting to catching up.

use std::time::Duration;

use serde_json::json;

use crate::client::{Store, put};
use crate::data::all;
use crate::world::{World, again, init};

#[tokio::test]
async fn smoke() {
    let mut world = World::new().await;
    world.api.ask("mine", all("issue").by("owner", "a"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("mine", 1000)]));
    c.until("the query", |s| s.got.contains("mine")).await;
    assert!(c.has("issue", "i1"));
    assert_eq!(c.store.desired["c1"], ["mine".to_owned()].into());
    world.issue("i2", "a", 2).await;
    let poke = c.poke().await;
    assert_eq!(poke.keys("put"), [r#"issue/"i2""#]);
    c.silent(Duration::from_millis(300)).await;
    let store = c.cut();
    let mut c = world.connect("g", "c1", store, again(&[]));
    let poke = c.poke().await;
    assert_eq!(poke.base.as_ref(), Some(&poke.cookie));
    assert_eq!(poke.parts, Vec::<serde_json::Value>::new());
    let _ = json!(null);
}
