//! Tables and columns that come, change and go while clients are connected.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::client::{Client, Options};

use crate::app::{Site, all_issues, fence, query, with_log};

fn schema(tables: &[(&str, &[(&str, &str)])]) -> Value {
    let tables: serde_json::Map<_, _> = tables
        .iter()
        .map(|(name, columns)| {
            let columns: serde_json::Map<_, _> =
                columns.iter().map(|(column, of)| ((*column).to_owned(), json!({"type": of}))).collect();
            ((*name).to_owned(), json!({"columns": columns, "primaryKey": ["id"]}))
        })
        .collect();
    json!({"tables": tables})
}

const FENCE: (&str, &[(&str, &str)]) = ("fence", &[("id", "number"), ("value", "number")]);

/// A client with its own idea of the tables; tried again while the change is on its way.
async fn client_of(site: &Site, tables: &[(&str, &[(&str, &str)])], ast: Value) -> Result<Client> {
    let mut all = tables.to_vec();
    all.push(FENCE);
    let mut last = None;
    for _ in 0..100 {
        match Client::start(Options::new(site.server.port(), schema(&all)), &[query(ast.clone()), fence()]).await {
            Ok(client) => return Ok(client),
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    with_log(Err(last.context("attempts were made")?), &site.server)
}

fn rows(client: &Client, table: &str) -> Vec<Value> {
    client.store().rows.get(table).map(|rows| rows.values().cloned().map(Value::Object).collect()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_added_changed_and_dropped() -> Result<()> {
    let site = Site::start("table_life").await?;
    let bystander = site.client(&[all_issues(), fence()]).await?;

    site.database
        .execute("CREATE TABLE tool (id int PRIMARY KEY, name text); INSERT INTO tool VALUES (1, 'saw'), (2, NULL)")
        .await?;
    let client =
        client_of(&site, &[("tool", &[("id", "number"), ("name", "string")])], json!({"table": "tool"})).await?;
    site.settle(&[&client]).await?;
    ensure!(rows(&client, "tool") == [json!({"id": 1, "name": "saw"}), json!({"id": 2, "name": null})]);
    site.database.execute("INSERT INTO tool VALUES (3, 'file'); DELETE FROM tool WHERE id = 2").await?;
    site.settle(&[&client]).await?;
    ensure!(rows(&client, "tool") == [json!({"id": 1, "name": "saw"}), json!({"id": 3, "name": "file"})]);

    // A column with a default: old rows have it at once.
    site.database.execute("ALTER TABLE tool ADD COLUMN price numeric NOT NULL DEFAULT 9.5").await?;
    site.database.execute("UPDATE tool SET price = 12 WHERE id = 3").await?;
    let priced: (&str, &[(&str, &str)]) = ("tool", &[("id", "number"), ("name", "string"), ("price", "number")]);
    let second = client_of(&site, &[priced], json!({"table": "tool", "orderBy": [["price", "desc"]]})).await?;
    site.settle(&[&second]).await?;
    ensure!(
        rows(&second, "tool")
            == [json!({"id": 1, "name": "saw", "price": 9.5}), json!({"id": 3, "name": "file", "price": 12})],
        "{:?}",
        rows(&second, "tool")
    );

    site.database
        .execute("ALTER TABLE tool RENAME COLUMN name TO title; UPDATE tool SET title = 'big saw' WHERE id = 1")
        .await?;
    let renamed: (&str, &[(&str, &str)]) = ("tool", &[("id", "number"), ("price", "number"), ("title", "string")]);
    let third = client_of(&site, &[renamed], json!({"table": "tool"})).await?;
    site.settle(&[&third]).await?;
    ensure!(
        rows(&third, "tool")
            == [json!({"id": 1, "price": 9.5, "title": "big saw"}), json!({"id": 3, "price": 12, "title": "file"})],
        "{:?}",
        rows(&third, "tool")
    );

    site.database.execute("ALTER TABLE tool DROP COLUMN price; INSERT INTO tool VALUES (4, 'axe')").await?;
    let slim: (&str, &[(&str, &str)]) = ("tool", &[("id", "number"), ("title", "string")]);
    let fourth = client_of(&site, &[slim], json!({"table": "tool", "orderBy": [["id", "desc"]], "limit": 1})).await?;
    site.settle(&[&fourth]).await?;
    ensure!(rows(&fourth, "tool") == [json!({"id": 4, "title": "axe"})], "{:?}", rows(&fourth, "tool"));

    site.database.execute("DROP TABLE tool").await?;
    let checked = site.check(&bystander).await;
    with_log(checked, &site.server)?;
    ensure!(!site.server.log().contains("panicked at"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_change_under_a_connected_client() -> Result<()> {
    let site = Site::start("columns").await?;
    let mut client = site.client(&[all_issues(), fence()]).await?;
    // A column the client does not know comes and goes: it may be reconnected, but must end up right.
    for change in [
        "ALTER TABLE issue ADD COLUMN extra text",
        "UPDATE issue SET extra = 'x' WHERE id < 'i2'",
        "ALTER TABLE issue RENAME COLUMN extra TO more",
        "ALTER TABLE issue ALTER COLUMN more TYPE varchar(10)",
        "ALTER TABLE issue DROP COLUMN more",
        "BEGIN; ALTER TABLE comment ADD COLUMN stars int DEFAULT 5; UPDATE issue SET rank = rank + 1; ALTER TABLE comment DROP COLUMN stars; COMMIT",
    ] {
        site.database.execute(change).await?;
        let mut checked = Ok(());
        for _ in 0..20 {
            if !client.is_connected() {
                client.connect().await?;
            }
            checked = site.check(&client).await;
            if checked.is_ok() {
                break;
            }
            client.check()?;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        with_log(checked.with_context(|| change.to_owned()), &site.server)?;
    }
    ensure!(!site.server.log().contains("panicked at"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_and_a_keyless_table_disturb_nobody() -> Result<()> {
    let site = Site::start("renames").await?;
    let bystander =
        client_of(&site, &[("issue", &[("id", "string"), ("title", "string")])], json!({"table": "issue"})).await?;
    site.database.execute("CREATE TABLE keyless (n int); INSERT INTO keyless VALUES (1)").await?;
    site.database.execute("ALTER TABLE label RENAME TO tag; INSERT INTO tag VALUES ('l9', 'nine')").await?;
    site.database.execute("CREATE TABLE odd (id int PRIMARY KEY, shape polygon, name text); INSERT INTO odd VALUES (1, '((0,0),(1,1),(2,0))', 'kept')").await?;
    let tags = client_of(&site, &[("tag", &[("id", "string"), ("name", "string")])], json!({"table": "tag"})).await?;
    site.settle(&[&tags, &bystander]).await?;
    ensure!(rows(&tags, "tag").len() == 5, "{:?}", rows(&tags, "tag"));
    let odd = client_of(&site, &[("odd", &[("id", "number"), ("name", "string")])], json!({"table": "odd"})).await?;
    ensure!(rows(&odd, "odd") == [json!({"id": 1, "name": "kept"})], "{:?}", rows(&odd, "odd"));
    site.settle(&[&bystander]).await?;
    ensure!(!site.server.log().contains("panicked at"));
    Ok(())
}
