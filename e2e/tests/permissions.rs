//! Client-defined queries, deployed permissions and tokens, against a whole server: whoever it is, each user has the rows that an
//! independent judge says, whatever the rules, and has them at once when rules or rows change.

use std::path::Path;
use std::process::Command;
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
        for user in rules::USERS {
            let claims = rules::claims(&mut rng, user);
            let mut options = Options::new(server.port(), rules::client_schema());
            options.user_id = claims["sub"].as_str().map(str::to_owned);
            options.auth_token = Some(token(&claims)?);
            let queries: Vec<Query> = (0..QUERIES).map(|_| Query::Ast(rules::query(&mut rng, 3))).collect();
            let client = Client::start(options, &queries).await.with_context(|| format!("{claims} {queries:?}"))?;
            users.push(User { claims, client });
        }
        for step in 0..3 {
            check(&database, &permissions, &users).await.with_context(|| format!("round {round}, step {step}"))?;
            cases += rules::USERS.len() * QUERIES;
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

/// A schema and its permissions, as an application writes them down; `rule` is for reading issues.
fn schema_file(package: &Path, rule: &str) -> String {
    let library = package.join("out/zero/src/zero.js");
    format!(
        r#"import {{createSchema, table, string, number, boolean, definePermissions}} from {library:?};
const issue = table("issue")
  .columns({{id: string(), owner: string().optional(), open: boolean().optional(), n: number().optional(), gone: string().optional()}})
  .primaryKey("id");
export const schema = createSchema({{tables: [issue], relationships: []}});
export const permissions = definePermissions(schema, () => ({{issue: {{row: {{select: [{rule}]}}}}}}));
"#
    )
}

fn run(program: &Path, arguments: &[&str], upstream: &str) -> Result<(Option<i32>, String)> {
    let mut command = Command::new(program);
    command.args(arguments).env("ZERO_UPSTREAM_DB", upstream).env("DO_NOT_TRACK", "1");
    let output = command.output().with_context(|| format!("run {}", program.display()))?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Ok((output.status.code(), said))
}

/// Both tools, the original's and ours, do the same upstream, and whoever is connected sees it.
#[tokio::test(flavor = "multi_thread")]
async fn permissions_are_deployed_by_either_tool() -> Result<()> {
    let database = Postgres::shared(Version::V15)?.create_database("deployed").await?;
    database.execute(rules::CREATE).await?;
    database
        .execute("INSERT INTO issue VALUES ('i1', 'u1', true, 1), ('i2', 'u2', true, 2), ('i3', NULL, false, 3)")
        .await?;
    let mut server = ZeroCache::new(&database.url())?.env("ZERO_AUTH_SECRET", SECRET);
    let binary = testkit::process::binary()?;
    let file = server.folder().join("permissions");
    let file = file.to_str().context("a path")?;
    let url = database.url();
    let ours = |words: &[&str]| run(&binary, &[&["permissions"], words].concat(), &url);
    // Before any server has set the database up, names cannot be compared, and all the same it can be done.
    std::fs::write(file, json!({"tables": {"issue": {"row": {"select": []}}}}).to_string())?;
    let (code, said) = ours(&["deploy", file])?;
    ensure!(code == Some(0) && said.contains("not compared") && said.contains("deployed new"), "{code:?} {said}");
    server.start()?;
    let mut options = Options::new(server.port(), rules::client_schema());
    options.auth_token = Some(token(&json!({"sub": "u1"}))?);
    let client = Client::start(options, &[Query::Ast(json!({"table": "issue"}))]).await?;
    let issues = |count: usize| {
        let shown = move |store: &testkit::client::Store| store.rows.get("issue").map_or(0, |rows| rows.len()) == count;
        client.wait_for("the rows that the rule allows", shown)
    };
    issues(0).await?;
    for (package, formats) in [("zero-1-4", &["sql"][..]), ("zero-1-9", &["json", "pretty"])] {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("node_modules").join(package);
        let schema = server.folder().join("schema.mjs");
        let theirs = |rule: &str, words: &[&str]| {
            std::fs::write(&schema, schema_file(&package, rule))?;
            let tool = package.join("out/zero/src/deploy-permissions.js");
            let words =
                [&[tool.to_str().context("a path")?, "--schema-path", schema.to_str().context("a path")?], words];
            run(Path::new("node"), &words.concat(), &url)
        };
        let mine = r#"(claims, {cmp}) => cmp("owner", "=", claims.sub)"#;
        let (code, said) = theirs(mine, &[])?;
        ensure!(code == Some(0) && said.contains("Deployed new permissions"), "{code:?} {said}");
        issues(1).await?;
        let (code, said) = theirs(r#"(_, {cmp}) => cmp("gone", "=", "x")"#, &[])?;
        ensure!(code != Some(0) && said.contains("gone"), "it knows what is published: {code:?} {said}");
        for format in formats {
            let rule = format!(r#"(_, {{cmp}}) => cmp("n", "<", {})"#, 1 + format.len());
            let (code, said) = theirs(&rule, &["--output-file", file, "--output-format", format])?;
            ensure!(code == Some(0), "{code:?} {said}");
            let (code, said) = ours(&["validate", file])?;
            ensure!(code == Some(0) && said.contains("rules for 1 table"), "{code:?} {said}");
            let (code, said) = ours(&["deploy", file])?;
            ensure!(code == Some(0) && said.contains("deployed new"), "{code:?} {said}");
            issues(format.len().min(3)).await?;
        }
        let gone = json!({"type": "simple", "op": "=", "left": {"type": "column", "name": "gone"}, "right": {"type": "literal", "value": 1}});
        std::fs::write(file, json!({"tables": {"issue": {"row": {"select": [["allow", gone]]}}}}).to_string())?;
        for command in ["validate", "deploy"] {
            let (code, said) = ours(&[command, file])?;
            let place = r#"tables.issue.row.select[0]: table "issue" has no published column "gone""#;
            ensure!(code == Some(13) && said.contains(place), "{code:?} {said}");
        }
        issues(3).await?;
        let (code, said) = ours(&["show"])?;
        ensure!(code == Some(0) && said.contains("\"select\"") && !said.contains("gone"), "{code:?} {said}");
    }
    for (text, why) in
        [("{", "not JSON"), ("[]", "expected an object"), (r#"{"tables":{"nope":{}}}"#, "no table \"nope\"")]
    {
        std::fs::write(file, text)?;
        let (code, said) = ours(&["deploy", file])?;
        ensure!(code == Some(13) && said.contains(why), "{text}: {code:?} {said}");
    }
    // What nobody can read allows nothing, and says so where its owner looks; the server goes on.
    std::fs::write(file, r#"{"tables":{"nope":{}}}"#)?;
    let (code, said) = ours(&["deploy", file, "--force"])?;
    ensure!(code == Some(0), "{code:?} {said}");
    issues(0).await?;
    deploy(&database, &json!([1])).await?;
    let (code, said) = ours(&["show"])?;
    ensure!(code == Some(13) && said.contains("allows nothing"), "{code:?} {said}");
    let until = Instant::now() + PATIENCE;
    while !server.log().contains("the deployed permissions cannot be read") {
        ensure!(Instant::now() < until, "the log says so");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(server.metric("zero_permissions_unreadable")? > 0.5, "and so does a metric");
    let (code, _) = ours(&["deploy", "/nowhere"])?;
    ensure!(code == Some(255), "{code:?}");
    server.allow_error("the deployed permissions cannot be read").check_log()
}
