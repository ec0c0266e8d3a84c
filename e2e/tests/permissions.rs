//! Client-defined queries, deployed permissions and tokens, against a whole server: whoever it is, each user has the rows that an
//! independent judge says, whatever the rules, and has them at once when rules or rows change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use sha2::Sha256;
use testkit::client::{Client, Options, Query};
use testkit::oracle::{Snapshot, check_store, visible};
use testkit::postgres::{Database, Postgres, Version};
use testkit::process::ZeroCache;
use testkit::rules;

const SECRET: &str = "a secret that only the test and the server know";
const PATIENCE: Duration = Duration::from_secs(30);
const USERS: usize = 3;
const QUERIES: usize = 3;

/// A token with these claims.
fn token(claims: &Value) -> Result<String> {
    let encode = |value: &Value| BASE64.encode(value.to_string());
    let signed = format!("{}.{}", encode(&json!({"alg": "HS256", "typ": "JWT"})), encode(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes())?;
    mac.update(signed.as_bytes());
    Ok(format!("{signed}.{}", BASE64.encode(mac.finalize().into_bytes())))
}

async fn deploy(database: &Database<'_>, permissions: &Value) -> Result<()> {
    let client = database.connect().await?;
    let changed = client.execute("UPDATE zero.permissions SET permissions = $1", &[permissions]).await?;
    ensure!(changed == 1, "the permissions have a row");
    Ok(())
}

/// Changes a few rows, in one transaction.
async fn change(database: &Database<'_>, rng: &mut StdRng, count: usize) -> Result<()> {
    let mut statements = String::new();
    for _ in 0..count {
        let names = rules::tables();
        let table = names[rng.random_range(0..names.len())];
        let row = rules::row(rng, table);
        let text = row.to_string().replace('\'', "''");
        statements.push_str(&if rng.random_bool(0.2) {
            let id = row["id"].as_str().map_or_else(|| row["id"].to_string(), |id| format!("'{id}'"));
            format!("DELETE FROM {table} WHERE id = {id};")
        } else {
            let record = format!("json_populate_record(NULL::{table}, '{text}')");
            let columns: Vec<String> = row
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, _)| format!("\"{name}\" = EXCLUDED.\"{name}\""))
                .collect();
            format!("INSERT INTO {table} SELECT * FROM {record} ON CONFLICT (id) DO UPDATE SET {};", columns.join(", "))
        });
    }
    database.execute(&format!("BEGIN; {statements} COMMIT")).await
}

struct User {
    claims: Value,
    client: Client,
}

/// Waits until every user has exactly what the judge says.
async fn check(database: &Database<'_>, permissions: &Value, users: &[User]) -> Result<()> {
    let tables = rules::tables();
    let snapshot = Snapshot::read(&mut database.connect().await?, &tables).await?;
    for user in users {
        let seen = visible(&snapshot, permissions, &user.claims)?;
        let queries: Vec<Value> = user
            .client
            .wanted()
            .filter_map(|query| match query {
                Query::Ast(ast) => Some(ast.clone()),
                Query::Named { .. } => None,
            })
            .collect();
        let until = Instant::now() + PATIENCE;
        while let Err(problem) = check_store(&seen, &user.client.store(), &queries, &rules::client_schema()) {
            user.client.check()?;
            if Instant::now() > until {
                return Err(problem).with_context(|| format!("claims {}\npermissions {permissions}", user.claims));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_rules_give_each_user_what_an_independent_judge_allows() -> Result<()> {
    let seed = testkit::seed("permissions");
    let rounds: usize = std::env::var("ZERO_RULES").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut rng = StdRng::seed_from_u64(seed);
    let database = Postgres::shared(Version::V15)?.create_database("permissions").await?;
    database.execute(rules::CREATE).await?;
    change(&database, &mut rng, 30).await?;
    let mut server = ZeroCache::new(&database.url())?.env("ZERO_AUTH_SECRET", SECRET).env("ZERO_NUM_SYNC_WORKERS", "2");
    server.start()?;
    let mut cases = 0;
    for round in 0..rounds {
        let mut permissions = rules::permissions(&mut rng, 3);
        deploy(&database, &permissions).await?;
        let mut users = Vec::new();
        for n in 0..USERS {
            let claims = rules::claims(&mut rng, rules::USERS[n]);
            let mut options = Options::new(server.port(), rules::client_schema());
            options.user_id = claims["sub"].as_str().map(str::to_owned);
            options.auth_token = Some(token(&claims)?);
            let queries: Vec<Query> = (0..QUERIES).map(|_| Query::Ast(rules::query(&mut rng, 3))).collect();
            let client = Client::start(options, &queries).await.with_context(|| format!("{claims} {queries:?}"))?;
            users.push(User { claims, client });
        }
        for step in 0..3 {
            check(&database, &permissions, &users).await.with_context(|| format!("round {round}, step {step}"))?;
            cases += USERS * QUERIES;
            if step == 0 {
                change(&database, &mut rng, 8).await?;
            } else {
                permissions = rules::permissions(&mut rng, 3);
                deploy(&database, &permissions).await?;
            }
        }
        for mut user in users {
            user.client.close().await?;
        }
    }
    println!("{cases} cases");
    server.check_log()
}
