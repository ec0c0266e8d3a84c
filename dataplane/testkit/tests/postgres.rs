use anyhow::Result;
use testkit::postgres::{Options, Postgres, Version};

async fn exercise(version: Version, expect: &str) -> Result<()> {
    let postgres = Postgres::start(version)?;
    let database = postgres.create_database("exercise").await?;
    database.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await?;
    let client = database.connect().await?;
    let shown: String = client.query_one("SHOW server_version", &[]).await?.get(0);
    assert!(shown.starts_with(expect), "{shown}");
    let level: String = client.query_one("SHOW wal_level", &[]).await?.get(0);
    assert_eq!(level, "logical");

    postgres.restart()?;
    database.execute("INSERT INTO t VALUES (2)").await?;
    postgres.kill()?;
    assert!(database.connect().await.is_err());
    postgres.resume()?;
    let count: i64 = database.connect().await?.query_one("SELECT count(*) FROM t", &[]).await?.get(0);
    assert_eq!(count, 2);

    let folder = postgres.socket_folder().to_owned();
    let port = postgres.port();
    drop(postgres);
    assert!(!folder.exists());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    Ok(())
}

#[tokio::test]
async fn debian_15_starts_restarts_and_survives_a_kill() -> Result<()> {
    exercise(Version::V15, "15.").await
}

#[tokio::test]
async fn npm_18_starts_restarts_and_survives_a_kill() -> Result<()> {
    exercise(Version::V18, "18.").await
}

#[tokio::test]
async fn npm_14_starts_restarts_and_survives_a_kill() -> Result<()> {
    exercise(Version::V14, "14.").await
}

#[tokio::test]
async fn settings_are_passed_on() -> Result<()> {
    let options =
        Options { wal_level: "replica", settings: vec![("max_connections".into(), "17".into())], ..Options::default() };
    let postgres = Postgres::start_with(Version::V15, options)?;
    let client = postgres.connect("postgres").await?;
    let level: String = client.query_one("SHOW wal_level", &[]).await?.get(0);
    assert_eq!(level, "replica");
    let connections: String = client.query_one("SHOW max_connections", &[]).await?.get(0);
    assert_eq!(connections, "17");
    Ok(())
}

#[test]
fn a_server_that_cannot_start_shows_its_log() {
    let options = Options { settings: vec![("shared_buffers".into(), "nonsense".into())], ..Options::default() };
    let error = Postgres::start_with(Version::V15, options).unwrap_err();
    assert!(format!("{error:#}").contains("shared_buffers"), "{error:#}");
}
