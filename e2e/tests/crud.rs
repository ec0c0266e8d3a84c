//! Mutations by the server itself, beside those of the API server.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::client::Client;

use crate::app::{Site, all_issues, fence, with_log};

/// An update of row 3 of the table `fence` counts, whatever value it sets, so that nothing done twice can hide.
const COUNTER: &str = "INSERT INTO fence VALUES (3, 0);
    CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.value := OLD.value + 1; RETURN NEW; END';
    CREATE TRIGGER count_up BEFORE UPDATE ON fence FOR EACH ROW WHEN (NEW.id = 3) EXECUTE FUNCTION count_up();";

fn permissions() -> Value {
    let all = json!([["allow", {"type": "and", "conditions": []}]]);
    let row = json!({"insert": all, "update": {"preMutation": all, "postMutation": all}, "delete": all});
    json!({"tables": {"fence": {"row": row}, "issue": {"row": row}}})
}

async fn start(test: &str) -> Result<Site> {
    let site = Site::start(test).await?;
    let deploy = format!("UPDATE zero.permissions SET permissions = '{}'; {COUNTER}", permissions());
    site.database.execute(&deploy).await?;
    Ok(site)
}

async fn is_done(client: &mut Client, id: u64) -> Result<()> {
    let client_id = client.options.client_id.clone();
    client
        .wait_for("its mutation", |store| store.last_mutation_ids.get(&client_id).is_some_and(|done| *done >= id))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_write_reaches_postgres_and_comes_back() -> Result<()> {
    let site = start("crud").await?;
    let mut client = site.client(&[all_issues(), fence()]).await?;
    let op =
        |kind: &str, value: Value| json!([{"op": kind, "tableName": "issue", "primaryKey": ["id"], "value": value}]);
    let new = json!({"id": "new", "title": "it's new", "open": true, "rank": 3, "created": 1_732_200_000_000.5});
    client.push_crud(op("insert", new)).await?;
    client.push_crud(op("update", json!({"id": "i1", "owner_id": null}))).await?;
    client.push_crud(op("upsert", json!({"id": "i2", "title": "upserted", "open": false, "rank": 1}))).await?;
    client
        .push_crud(json!([{"op": "delete", "tableName": "label", "primaryKey": ["id"], "value": {"id": "l1"}}]))
        .await?;
    let id = client.push_crud(op("delete", json!({"id": "i3"}))).await?;
    with_log(is_done(&mut client, id).await, &site.server)?;
    with_log(site.check(&client).await, &site.server)?;
    let seen = client.store().rows["issue"].clone();
    ensure!(seen["[\"new\"]"]["created"] == json!(1_732_200_000_000.5), "{seen:?}");
    ensure!(seen["[\"i1\"]"]["owner_id"] == json!(null), "{seen:?}");
    ensure!(seen["[\"i2\"]"]["title"] == json!("upserted") && !seen.contains_key("[\"i3\"]"));
    let labels = site.database.connect().await?.query_one("SELECT count(*) FROM label", &[]).await?;
    ensure!(labels.get::<_, i64>(0) == 4, "there is no rule for labels");
    Ok(())
}

/// Increments of both kinds through kills of the server: what is sent again is done once.
#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_of_both_kinds_is_exact() -> Result<()> {
    let rounds: u64 = std::env::var("ZERO_LEDGER_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let per_round: u64 = std::env::var("ZERO_LEDGER_INCREMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let mut site = start("ledger").await?;
    let mut clients: Vec<Client> = Vec::new();
    for n in 0..4 {
        // Two of one group, and two of others.
        let options = if n == 1 { clients[0].options.sibling() } else { site.options() };
        clients.push(Client::start(options, &[fence()]).await?);
    }
    let (mut custom, mut crud) = (0, 0);
    for round in 0..=rounds {
        for n in 0..per_round {
            for client in &mut clients {
                if rand::random_bool(0.5) {
                    custom += 1;
                    client.push("count", json!(null)).await?;
                } else {
                    crud += 1;
                    let set = json!({"id": 3, "value": n});
                    client
                        .push_crud(json!([{"op": "update", "tableName": "fence", "primaryKey": ["id"], "value": set}]))
                        .await?;
                }
            }
        }
        if round < rounds {
            tokio::time::sleep(std::time::Duration::from_millis(rand::random_range(0..150))).await;
            site.server.kill()?;
            clients.iter_mut().for_each(Client::kill);
            site.server.start()?;
            for client in &mut clients {
                client.connect().await?;
            }
        }
    }
    for client in &mut clients {
        let last = (rounds + 1) * per_round;
        // However much is left: what it waits for is that something moves.
        for next in 1..=last {
            with_log(is_done(client, next).await, &site.server)?;
        }
    }
    let sql = "SELECT (SELECT value FROM fence WHERE id = 2), (SELECT value FROM fence WHERE id = 3)";
    let row = site.database.connect().await?.query_one(sql, &[]).await?;
    let found = (row.get::<_, i32>(0), row.get::<_, i32>(1));
    ensure!(found == (custom, crud), "{found:?} of {:?}", (custom, crud));
    Ok(())
}
