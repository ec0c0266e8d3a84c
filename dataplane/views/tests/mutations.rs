//! Mutation ids and results.

use serde_json::json;

use crate::client::{Store, put};
use crate::data::{CLIENTS, MUTATIONS, all};
use crate::sync::A_WHILE;
use crate::world::{World, again, init};

fn lmid(group: &str, client: &str, id: i64) -> serde_json::Value {
    json!({"clientGroupID": group, "clientID": client, "lastMutationID": id, "userID": null})
}

fn result(group: &str, client: &str, id: i64) -> serde_json::Value {
    json!({"clientGroupID": group, "clientID": client, "mutationID": id, "result": {"error": "app", "message": "no"}})
}

#[tokio::test]
async fn an_id_comes_with_its_result_and_its_rows() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    let before = vec![world.put(CLIENTS, lmid("g", "c1", 1)), world.put(CLIENTS, lmid("other", "c1", 50))];
    world.apply(before).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    assert_eq!(c.store.lmids, [("c1".to_owned(), 1)].into());

    let changes = vec![
        world.put("issue", crate::world::issue("i1", "a", 1)),
        world.put(CLIENTS, lmid("g", "c1", 2)),
        world.put(MUTATIONS, result("g", "c1", 2)),
        world.put(CLIENTS, lmid("other", "c1", 51)),
    ];
    world.apply(changes).await;
    let poke = c.poke().await;
    assert_eq!(poke.lmids(), [("c1".to_owned(), 2)].into());
    assert_eq!(poke.mutations()[0]["mutation"]["result"]["error"], "app");
    assert_eq!(poke.keys("put"), [r#"issue/"i1""#]);
    // An id alone is worth a poke; another group's is not.
    world.upsert(CLIENTS, lmid("other", "c1", 52)).await;
    c.silent(A_WHILE).await;
    world.upsert(CLIENTS, lmid("g", "c9", 1)).await;
    assert_eq!(c.poke().await.lmids(), [("c9".to_owned(), 1)].into());
    // An acknowledged result is deleted upstream.
    world.delete(MUTATIONS, result("g", "c1", 2)).await;
    assert_eq!(c.poke().await.mutations(), [json!({"op": "del", "id": {"id": 2, "clientID": "c1"}})]);
    assert!(c.store.mutations.is_empty());

    // Whoever was away is sent only what changed.
    for restart in [false, true] {
        let store = c.cut();
        let n = store.lmids["c1"] + 1;
        if restart {
            world.kill();
        }
        let changes = vec![world.put(CLIENTS, lmid("g", "c1", n)), world.put(MUTATIONS, result("g", "c1", n))];
        world.apply(changes).await;
        if restart {
            world.start().await;
        }
        c = world.connect("g", "c1", store, again(&[]));
        let poke = c.poke().await;
        assert_eq!(poke.lmids(), [("c1".to_owned(), n)].into());
        assert_eq!(poke.mutations().len(), 1);
    }
    let store = c.cut();
    c = world.connect("g", "c1", store, again(&[]));
    assert!(c.poke().await.parts.is_empty());
}
