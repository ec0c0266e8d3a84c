//! What a Postgres must offer, checked before anything is created in it.

use tokio_postgres::Client;

use crate::{Error, Result};

const OLDEST: i32 = 150_000;

/// What differs between servers and matters later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    pub version: i32,
}

pub(crate) async fn check(client: &Client) -> Result<Server> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'), current_setting('wal_level'),
                    pg_is_in_recovery(), rolsuper OR rolreplication, rolname::text
             FROM pg_roles WHERE rolname = current_user",
            &[],
        )
        .await
        .map_err(|e| Error::statement("read the settings of Postgres", e))?;
    let version: i32 = row.get(0);
    let printed: String = row.get(1);
    let wal_level: String = row.get(2);
    let role: String = row.get(5);
    if version < OLDEST {
        return Err(Error::configuration(format!("Postgres {printed} is too old: version 15 or newer is required")));
    }
    if wal_level != "logical" {
        return Err(Error::configuration(format!(
            "wal_level of Postgres is '{wal_level}' and must be 'logical': run ALTER SYSTEM SET wal_level = 'logical' and restart Postgres"
        )));
    }
    if row.get::<_, bool>(3) {
        return Err(Error::configuration("this Postgres is a standby: connect to the primary server"));
    }
    if !row.get::<_, bool>(4) && !may_replicate_otherwise(client).await? {
        return Err(Error::configuration(format!(
            "the role {role} may not replicate: run ALTER ROLE {role} WITH REPLICATION"
        )));
    }
    let encoding = check_encoding(client, "ZERO_UPSTREAM_DB", Encodings::Known).await?;
    if encoding != "UTF8" {
        tracing::info!(encoding, "the database is not UTF-8: Postgres converts all texts");
    }
    Ok(Server { version })
}

/// What a database may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encodings {
    /// Anything that can be converted to UTF-8.
    Known,
    /// Whatever users write: only UTF-8 will do.
    All,
}

/// Refuses a database that cannot hold, or say, what texts are. Returns its encoding.
pub async fn check_encoding(client: &Client, database: &str, needed: Encodings) -> Result<String> {
    let sql = "SELECT pg_catalog.current_setting('server_encoding')";
    let row = client.query_typed_one(sql, &[]).await;
    let encoding: String = row.map_err(|e| Error::statement("read the encoding of the database", e))?.get(0);
    let remedy = "create it with ENCODING 'UTF8' (TEMPLATE template0)";
    match (encoding.as_str(), needed) {
        ("SQL_ASCII", _) => Err(Error::configuration(format!(
            "the encoding of the database {database} is SQL_ASCII, so nobody knows what its texts are: {remedy}"
        ))),
        ("UTF8", _) | (_, Encodings::Known) => Ok(encoding),
        (_, Encodings::All) => Err(Error::configuration(format!(
            "the encoding of the database {database} is {encoding}, which cannot hold every text: {remedy}"
        ))),
    }
}

/// Managed services grant replication through a role instead of the attribute.
async fn may_replicate_otherwise(client: &Client) -> Result<bool> {
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname IN ('rds_replication', 'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin')
                            AND pg_has_role(current_user, oid, 'member'))",
            &[],
        )
        .await
        .map_err(|e| Error::statement("read the roles of Postgres", e))?;
    Ok(row.get(0))
}
