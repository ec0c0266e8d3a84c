//! The straight path: hydrate, live changes, mutations, two clients of a group, query errors.

use anyhow::Result;
use serde_json::json;
use testkit::client::{Client, Query};

use crate::app::{Site, all_issues, cmp, fence, query};

#[tokio::test(flavor = "multi_thread")]
async fn a_query_hydrates_and_follows_changes() -> Result<()> {
    let site = Site::start("follows").await?;
    let open = query(json!({
        "table": "issue", "where": cmp("open", "=", json!(true)), "orderBy": [["rank", "desc"]], "limit": 5,
        "related": [{
            "system": "client",
            "correlation": {"parentField": ["id"], "childField": ["issue_id"]},
            "subquery": {"table": "comment", "alias": "comments", "orderBy": [["pos", "desc"]], "limit": 2},
        }],
    }));
    let client = site.client(&[open, fence()]).await?;
    site.check(&client).await?;
    for change in [
        "UPDATE issue SET rank = 100 WHERE id = 'i4'",
        "DELETE FROM issue WHERE id = 'i13'",
        "INSERT INTO issue (id, title, open, rank) VALUES ('new', 'New', true, 50)",
        "UPDATE issue SET open = false WHERE id = 'i4'",
        "INSERT INTO comment VALUES ('x1', 'new', 'p1', 'first', 1), ('x2', 'new', NULL, 'second', 2), ('x3', 'new', 'p2', 'third', 3)",
        "DELETE FROM comment WHERE id = 'x3'",
        "UPDATE issue SET id = 'renamed' WHERE id = 'new'",
        "BEGIN; UPDATE issue SET rank = -rank; UPDATE comment SET pos = -pos; COMMIT",
        "TRUNCATE comment",
    ] {
        site.database.execute(change).await?;
        site.check(&client).await?;
    }
    site.server.check_log()
}

#[tokio::test(flavor = "multi_thread")]
async fn mutations_run_once_and_their_errors_come_back() -> Result<()> {
    let site = Site::start("mutations").await?;
    let mut client = site.client(&[all_issues(), fence()]).await?;
    let id = client.options.client_id.clone();
    let first = client.push("rename", json!({"id": "i1", "title": "renamed"})).await?;
    client.wait_for("the mutation", |store| store.last_mutation_ids.get(&id) == Some(&first)).await?;
    assert_eq!(client.store().rows["issue"]["[\"i1\"]"]["title"], json!("renamed"));

    let second = client.push("rename", json!({"id": "i1", "title": "forbidden"})).await?;
    client.wait_for("the failing mutation", |store| store.last_mutation_ids.get(&id) == Some(&second)).await?;
    let store = client.store();
    assert_eq!(
        store.mutation_results[&(id.clone(), second)]["error"],
        json!("app"),
        "the result must not come after its id"
    );
    assert_eq!(store.rows["issue"]["[\"i1\"]"]["title"], json!("renamed"));
    client.send(&json!(["ackMutationResponses", {"id": second, "clientID": id}])).await?;

    // Sent again on a new connection, as clients do when the answer got lost.
    let third = client.push("rename", json!({"id": "i2", "title": "third"})).await?;
    client.connect().await?;
    client.wait_for("the mutation after a reconnect", |store| store.last_mutation_ids.get(&id) == Some(&third)).await?;
    site.check(&client).await?;
    site.server.check_log()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_group_see_each_others_queries() -> Result<()> {
    let site = Site::start("siblings").await?;
    let first = site.client(&[all_issues(), fence()]).await?;
    let people = query(json!({"table": "person"}));
    let second = Client::start(first.options.sibling(), std::slice::from_ref(&people)).await?;
    first.wait_got(&[people]).await?;
    second.wait_got(&[all_issues()]).await?;
    site.settle(&[&first, &second]).await?;
    assert_eq!(first.store().rows, second.store().rows);
    assert_eq!(first.store().rows["person"].len(), 6);
    site.server.check_log()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_query_is_reported_and_the_others_work() -> Result<()> {
    let site = Site::start("refused").await?;
    let mut client = Client::new(site.options());
    let refused = Query::named("refused", json!([]));
    client.want(&[refused.clone(), all_issues(), fence()]);
    client.connect().await?;
    client.wait_got(&[all_issues(), fence()]).await?;
    client.wait_for("the error", |store| !store.transform_errors.is_empty()).await?;
    let store = client.store();
    assert_eq!(store.transform_errors[0]["id"], json!(refused.hash()));
    assert_eq!(store.transform_errors[0]["error"], json!("app"));
    assert!(!store.got.contains(&refused.hash()));
    site.settle(&[&client]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_are_answered_and_the_handshake_may_carry_no_queries() -> Result<()> {
    let site = Site::start("pings").await?;
    let mut options = site.options();
    options.init_in_header = false;
    options.protocol_version = 50;
    let mut client = Client::start(options, &[all_issues(), fence()]).await?;
    client.send(&json!(["ping", {}])).await?;
    client.wait_for("a pong", |store| store.counts.pongs > 0).await?;
    site.check(&client).await
}
