//! A row is known by its table and replica identity; the key that a client schema chose is a view of it. Clients with different
//! choices share materialisations of other tables, steps and encoded rows, and must never be sent each other's rows: the
//! scripted client fails on any frame with a row of another owner.

use serde_json::{Value as Json, json};

use crate::client::{Client, Store, put};
use crate::data::Keys;
use crate::sync::A_WHILE;
use crate::world::{Reply, World, acct, again, init_by, mine};

async fn owner(world: &World, user: &str, keys: Keys) -> Client {
    let mut client = world.connect_as(user, "c", Store::default(), init_by(keys, &[put("mine", 1_000)]), Some(user));
    client.keys = keys;
    client.until("the query", |s| s.got.contains("mine")).await;
    client
}

#[tokio::test]
async fn users_whose_clients_choose_different_keys_are_sent_their_own_rows() {
    let mut world = World::new().await;
    world.api.set("mine", Reply::Mine);
    let mut a = owner(&world, "a", Keys::Usual).await;
    let mut b = owner(&world, "b", Keys::Other).await;
    // By the cells of the chosen keys, both rows are "acct 1".
    let changes = vec![world.put("acct", acct(1, "a", 7)), world.put("acct", acct(2, "b", 1))];
    world.apply(changes).await;
    a.until("its row", |s| !s.rows.is_empty()).await;
    b.until("its row", |s| !s.rows.is_empty()).await;
    assert_eq!(a.store.rows, world.expected([&mine("a")]));
    assert_eq!(b.store.rows, world.expected_by(Keys::Other, [&mine("b")]));
    // The same with contents that change, and again for one that was away, on another life of the node.
    let (away, store) = (b.keys, b.cut());
    let changes = vec![world.put("acct", acct(1, "a", 1)), world.put("acct", acct(2, "b", 2))];
    world.apply(changes).await;
    a.until("the new number", |s| s.rows.values().any(|row| row["num"] == 1)).await;
    for restart in [false, true] {
        if restart {
            world.kill();
            world.start().await;
        }
        let mut back = world.connect_as("b", "c", store.clone(), again(&[]), Some("b"));
        back.keys = away;
        let expected = world.expected_by(Keys::Other, [&mine("b")]);
        back.until("its row under its new key", |s| s.rows == expected).await;
        back.cut();
    }
}

/// Two rows exchange what clients know them by, or a row takes the key of one that another user owns.
#[tokio::test]
async fn a_key_that_passes_from_row_to_row_is_followed() {
    let mut world = World::new().await;
    world.api.set("mine", Reply::Mine);
    let rows = |of: &[(i64, &str, i64)]| of.iter().map(|(id, o, n)| acct(*id, o, *n)).collect::<Vec<Json>>();
    let mut clients = Vec::new();
    for (user, keys) in [("a", Keys::Other), ("b", Keys::Other), ("c", Keys::Usual)] {
        clients.push((user, owner(&world, user, keys).await));
    }
    for step in [
        rows(&[(1, "a", 1), (2, "b", 2), (3, "c", 3), (4, "a", 4)]),
        rows(&[(1, "a", 2), (2, "b", 1)]),
        rows(&[(1, "a", 4), (4, "a", 2)]),
        rows(&[(1, "b", 4), (2, "a", 3), (3, "c", 1)]),
    ] {
        let changes = step.into_iter().map(|row| world.put("acct", row)).collect();
        world.apply(changes).await;
        for (user, client) in &mut clients {
            let expected = world.expected_by(client.keys, [&mine(user)]);
            client.until("its rows", |s| s.rows == expected).await;
        }
    }
}

/// A key that upstream no longer keeps unique names no rows: whoever chose it is told so, nobody else is disturbed.
#[tokio::test]
async fn a_chosen_key_that_is_not_unique_any_more_ends_its_queries_only() {
    let mut world = World::new().await;
    world.api.set("mine", Reply::Mine);
    let mut a = owner(&world, "a", Keys::Usual).await;
    let mut b = owner(&world, "b", Keys::Other).await;
    world.upsert("acct", acct(1, "b", 1)).await;
    b.until("its row", |s| !s.rows.is_empty()).await;
    let old = world.spec("acct");
    let mut new = rows::TableSpec::clone(&old);
    new.indexes.retain(|index| index.name != "acct_num");
    let alter = rows::Change::Schema(rows::transaction::SchemaChange::AlterTable {
        old,
        new: new.into(),
        added: vec![],
        rows: rows::transaction::Backfill::None,
    });
    let mut changes = vec![alter];
    changes.extend((2..6).map(|id| world.put("acct", acct(id, "b", 1))));
    changes.push(world.put("acct", acct(9, "a", 1)));
    world.apply(changes).await;
    assert_eq!(b.refused().await.0["kind"], "SchemaVersionNotSupported");
    a.until("its row", |s| s.rows.len() == 1).await;
    // The graph of the other key would have gone on until it was forgotten.
    world.upsert("acct", acct(3, "c", 1)).await;
    world.delete("acct", json!({"id": 4})).await;
    world.upsert("acct", acct(9, "a", 2)).await;
    a.until("the change", |s| s.rows.values().all(|row| row["num"] == 2)).await;
    a.silent(A_WHILE).await;
    world.alive();
}
