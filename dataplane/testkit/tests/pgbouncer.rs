use std::collections::BTreeSet;

use anyhow::Result;
use testkit::pgbouncer::PgBouncer;
use testkit::postgres::{Postgres, Version, connect};

#[tokio::test]
async fn transactions_of_one_client_move_between_connections() -> Result<()> {
    let postgres = Postgres::shared(Version::V15)?;
    let database = postgres.create_database("pooled").await?;
    let pooler = PgBouncer::start(postgres, 3)?;
    let url = pooler.url(&database.name);
    let (one, two) = (connect(&url).await?, connect(&url).await?);
    let mut servers = BTreeSet::new();
    for _ in 0..20 {
        // While the first is in a transaction, the second cannot have its connection.
        one.batch_execute("BEGIN").await?;
        for row in two.simple_query("SELECT pg_backend_pid()").await? {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = row {
                servers.insert(row.get(0).unwrap_or_default().to_owned());
            }
        }
        one.batch_execute("COMMIT").await?;
        two.batch_execute("BEGIN; SELECT pg_sleep(0.001); COMMIT").await?;
    }
    assert!(!servers.is_empty());

    // What lives in the session does not survive: a statement prepared on one connection is unknown on another.
    let many: Vec<_> = futures_util::future::try_join_all((0..6).map(|_| connect(&url))).await?;
    let prepared = one.prepare("SELECT 1").await?;
    let mut failures = 0;
    for round in 0..20 {
        let blocker = &many[round % many.len()];
        blocker.batch_execute("BEGIN").await?;
        failures += u32::from(one.query(&prepared, &[]).await.is_err());
        blocker.batch_execute("ROLLBACK").await?;
    }
    assert!(failures > 0, "named prepared statements must break in transaction mode, or the pooler tests nothing");
    Ok(())
}

#[test]
fn it_ends_with_its_handle() -> Result<()> {
    let pooler = PgBouncer::start(Postgres::shared(Version::V15)?, 1)?;
    let port = pooler.port();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    drop(pooler);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    Ok(())
}
