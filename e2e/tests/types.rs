//! Every column type that applications commonly use, copied and live, on PostgreSQL 15 and 18.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::client::{Client, Options};
use testkit::oracle::{Snapshot, row_difference};
use testkit::postgres::Version;

use crate::app::{Site, query};

/// column, SQL type, client type, values as SQL literals
const COLUMNS: &[(&str, &str, &str, &[&str])] = &[
    (
        "t_text",
        "text",
        "string",
        &["''", "'plain'", "E'tab\\tnew\\nline \"quoted\" \\\\ back'", "'žluťoučký 🐎 \u{202e}'"],
    ),
    ("t_varchar", "varchar(50)", "string", &["'short'", "'  spaces  '"]),
    ("t_char", "char(5)", "string", &["'ab'", "'abcde'"]),
    ("t_uuid", "uuid", "string", &["'00000000-0000-0000-0000-000000000000'", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"]),
    ("t_int2", "smallint", "number", &["-32768", "32767", "0"]),
    ("t_int4", "integer", "number", &["-2147483648", "2147483647"]),
    ("t_int8", "bigint", "number", &["9007199254740991", "-9007199254740991"]),
    ("t_float4", "real", "number", &["1.5", "-0.1", "3.4028235e38", "1e-40"]),
    ("t_float8", "double precision", "number", &["0.1", "1e300", "-1e-300", "123456789.123456789"]),
    ("t_numeric", "numeric(20,5)", "number", &["123456789.12345", "-0.00001", "0"]),
    ("t_bignum", "numeric", "number", &["1e30", "0.1234567890123456789"]),
    ("t_bool", "boolean", "boolean", &["true", "false"]),
    ("t_date", "date", "number", &["'1970-01-01'", "'2024-02-29'", "'1066-10-14'"]),
    ("t_time", "time", "number", &["'00:00'", "'23:59:59.999'"]),
    ("t_timestamp", "timestamp", "number", &["'2024-01-02 03:04:05.678'", "'1969-12-31 23:59:59.5'"]),
    (
        "t_timestamptz",
        "timestamptz",
        "number",
        &["'2024-01-02 03:04:05.678+09'", "'2262-04-11 23:47:16Z'", "'2024-06-01 00:00:00.000123Z'"],
    ),
    ("t_json", "json", "json", &["'{\"b\": 1, \"a\": [1, null, \"x\"]}'", "'null'", "'\"text\"'", "'[1.50, 1e2]'"]),
    ("t_jsonb", "jsonb", "json", &["'{\"deep\": {\"er\": [true, {}]}}'", "'12'", "'[]'"]),
    ("t_enum", "colour", "string", &["'red'", "'deep blue'"]),
    ("t_texts", "text[]", "json", &["'{}'", "ARRAY['a', NULL, 'with \"quotes\", comma', '']", "'{NULL}'"]),
    ("t_ints", "integer[]", "json", &["'{1,-2,NULL}'"]),
    ("t_bools", "boolean[]", "json", &["'{t,f}'"]),
    ("t_floats", "double precision[]", "json", &["'{1.5,-2e10}'"]),
    ("t_uuids", "uuid[]", "json", &["'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"]),
    ("t_enums", "colour[]", "json", &["'{red,\"deep blue\"}'"]),
    ("t_inet", "inet", "string", &["'10.0.0.1/8'", "'::1'"]),
];

fn tables() -> String {
    let columns: Vec<_> = COLUMNS.iter().map(|(name, of, ..)| format!("{name} {of}")).collect();
    format!(
        "CREATE TYPE colour AS ENUM ('red', 'green', 'deep blue');
         CREATE TABLE sample (id int PRIMARY KEY, {}, t_bytea bytea, t_point point);
         INSERT INTO sample (id) VALUES (0);",
        columns.join(", ")
    )
}

/// One row per value of each column: its id and SQL.
fn inserts(first: usize) -> Vec<(usize, String)> {
    let all = COLUMNS.iter().flat_map(|(name, _, _, values)| values.iter().map(move |value| (name, value)));
    all.enumerate()
        .map(|(n, (name, value))| {
            let id = first + n;
            (id, format!("INSERT INTO sample (id, {name}, t_bytea) VALUES ({id}, {value}, '\\x00ff')"))
        })
        .collect()
}

fn client_schema() -> Value {
    let mut columns: serde_json::Map<_, _> =
        COLUMNS.iter().map(|(name, _, of, _)| ((*name).to_owned(), json!({"type": of}))).collect();
    columns.insert("id".to_owned(), json!({"type": "number"}));
    json!({"tables": {"sample": {"columns": columns, "primaryKey": ["id"]}}})
}

async fn round_trip(version: Version, test: &str) -> Result<()> {
    let copied: String = inserts(1000).into_iter().map(|(_, sql)| sql + ";").collect();
    let mut site = Site::prepare_on(test, version, &(tables() + &copied)).await?;
    site.server.start()?;
    let mut options = Options::new(site.server.port(), client_schema());
    options.init_in_header = false;
    let samples = query(json!({"table": "sample"}));
    let client = Client::start(options, std::slice::from_ref(&samples)).await?;
    compare(&site, &client, "copied").await?;

    let live: String = inserts(2000).into_iter().map(|(_, sql)| sql + ";").collect();
    site.database.execute(&live).await?;
    wait_marker(&site, &client, 1).await?;
    compare(&site, &client, "inserted").await?;

    // Each value into a row that has all others, and back to null.
    let updates: String = COLUMNS
        .iter()
        .flat_map(|(name, _, _, values)| {
            values.iter().map(move |value| format!("UPDATE sample SET {name} = {value} WHERE id = 0;"))
        })
        .collect();
    site.database.execute(&updates).await?;
    wait_marker(&site, &client, 2).await?;
    compare(&site, &client, "updated").await?;
    let nulls: Vec<_> = COLUMNS.iter().map(|(name, ..)| format!("{name} = NULL")).collect();
    site.database.execute(&format!("UPDATE sample SET {} WHERE id >= 1000", nulls.join(", "))).await?;
    wait_marker(&site, &client, 3).await?;
    compare(&site, &client, "set to null").await?;

    // And once more by another server's fresh copy of what was written live.
    site.server.terminate()?;
    let mut second = crate::app::server(&site.database, &site.api)?.env("ZERO_APP_ID", "second");
    second.start()?;
    let again = Client::start(Options::new(second.port(), client_schema()), &[samples]).await?;
    compare(&site, &again, "copied by a second server").await?;
    site.server.check_log()?;
    second.check_log()
}

async fn wait_marker(site: &Site, client: &Client, n: i32) -> Result<()> {
    site.database.execute(&format!("INSERT INTO sample (id) VALUES (-{n})")).await?;
    let key = format!("[-{n}]");
    client
        .wait_for("the marker row", |store| store.rows.get("sample").is_some_and(|rows| rows.contains_key(&key)))
        .await
}

async fn compare(site: &Site, client: &Client, how: &str) -> Result<()> {
    let snapshot = Snapshot::read(&mut site.database.connect().await?, &["sample"]).await?;
    let store = client.store();
    let held = store.rows.get("sample").context("the client has rows")?;
    let truth = &snapshot.tables["sample"].rows;
    assert_eq!(held.len(), truth.len(), "{how}");
    let mut wrong = Vec::new();
    for row in truth {
        let key = format!("[{}]", row["id"]);
        let mine = held.get(&key).with_context(|| format!("row {key}, {how}"))?;
        wrong.extend(row_difference(mine, row).map(|difference| format!("row {key} {how}: {difference}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_types_round_trip_on_15() -> Result<()> {
    round_trip(Version::V15, "types_15").await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_types_round_trip_on_18() -> Result<()> {
    round_trip(Version::V18, "types_18").await
}
