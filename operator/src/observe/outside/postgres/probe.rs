//! What one connection finds out.
//!
//! Every statement is sent whole, without a prepared one, so that a pooler that hands each transaction to another process does
//! no harm.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};

use super::{Address, Database, Part, Session, described};
use crate::observe::{Fault, Identity, Limits};

const OLDEST: i32 = 150_000;

#[derive(Debug, Default)]
pub(super) struct Findings {
    pub fault: Option<Fault>,
    pub limits: Option<Limits>,
    pub slot_lost: bool,
    pub identity: Option<Identity>,
}

/// Asks and closes the connection.
pub(super) async fn probe(session: Session, asked: &Database, all: &[Address]) -> Result<Findings, Fault> {
    let server = server(&session.client).await?;
    let mut findings = Findings {
        fault: server.fault(asked.part),
        // A pooler's own limits are not the server's, and its connections are shared with others.
        limits: match session.is_pooled(server.process) {
            true => None,
            false => Some(Limits {
                connections: server.connections(),
                in_use: in_use_by_others(&session.client, all).await?,
            }),
        },
        slot_lost: false,
        identity: None,
    };
    if asked.part == Part::Upstream {
        findings.identity = identity(&session.client).await;
    }
    if asked.part == Part::Upstream && findings.fault.is_none() {
        let schema = format!("{}_{}", asked.shard.app_id, asked.shard.number);
        findings.fault = slots(&session.client, &schema).await?;
        findings.slot_lost = is_slot_lost(&session.client, &schema).await;
    }
    session.close().await;
    Ok(findings)
}

/// Settings of the server, of the database and of the role.
struct Server {
    version: i32,
    printed_version: String,
    wal_level: String,
    is_standby: bool,
    may_replicate: bool,
    is_superuser: bool,
    role: String,
    max_connections: i32,
    reserved: i32,
    database_limit: i32,
    role_limit: i32,
    /// The process that answers.
    process: i32,
}

const SERVER: &str = "
SELECT current_setting('server_version_num')::int4, current_setting('server_version'), current_setting('wal_level'),
       pg_is_in_recovery(),
       rolsuper OR rolreplication OR EXISTS (
         SELECT FROM pg_roles g
         WHERE g.rolname IN ('rds_replication', 'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin')
           AND pg_has_role(current_user, g.oid, 'member')),
       rolsuper, rolname::text,
       current_setting('max_connections')::int4,
       current_setting('superuser_reserved_connections')::int4
         + coalesce(current_setting('reserved_connections', true), '0')::int4,
       (SELECT datconnlimit FROM pg_database WHERE datname = current_database()), rolconnlimit, pg_backend_pid()
FROM pg_roles WHERE rolname = current_user";

async fn server(client: &Client) -> Result<Server, Fault> {
    let row = one(client, SERVER, &[]).await?;
    Ok(Server {
        version: row.get(0),
        printed_version: row.get(1),
        wal_level: row.get(2),
        is_standby: row.get(3),
        may_replicate: row.get(4),
        is_superuser: row.get(5),
        role: row.get(6),
        max_connections: row.get(7),
        reserved: row.get(8),
        database_limit: row.get(9),
        role_limit: row.get(10),
        process: row.get(11),
    })
}

impl Server {
    fn fault(&self, part: Part) -> Option<Fault> {
        if self.is_standby {
            return Some(Fault::Standby("this Postgres is a standby".to_owned()));
        }
        if part != Part::Upstream {
            return None;
        }
        if self.version < OLDEST {
            return Some(Fault::VersionTooOld(format!("this is Postgres {}", self.printed_version)));
        }
        if self.wal_level != "logical" {
            return Some(Fault::WalLevel(format!("wal_level is {}", self.wal_level)));
        }
        let refused = || Fault::NoReplicationRole(format!("the role {} may not replicate", self.role));
        (!self.may_replicate).then(refused)
    }

    /// What the role may take at most. Limits of database and role do not hold for superusers; -1 is none.
    fn connections(&self) -> i32 {
        let server = self.max_connections - self.reserved;
        let limits =
            [self.database_limit, self.role_limit].into_iter().filter(|limit| *limit >= 0 && !self.is_superuser);
        limits.fold(server, i32::min).max(0)
    }
}

/// Clients' connections besides those that this deployment's pods take, and this one.
async fn in_use_by_others(client: &Client, all: &[Address]) -> Result<i32, Fault> {
    // What belongs to other roles may be hidden but for its database and its name.
    const OTHERS: &str = "
SELECT count(*)::int4 FROM pg_stat_activity a
WHERE a.datname IS NOT NULL AND coalesce(a.backend_type, 'client backend') = 'client backend'
  AND a.pid <> pg_backend_pid()
  AND NOT (a.application_name LIKE 'zero-%' AND EXISTS (
    SELECT FROM unnest($1::text[], $2::text[]) AS own (role, database)
    WHERE own.role = a.usename AND own.database = a.datname))";
    let (roles, databases): (Vec<&str>, Vec<&str>) = all.iter().map(|it| (it.user(), it.database())).unzip();
    let row = one(client, OTHERS, &[(&roles, Type::TEXT_ARRAY), (&databases, Type::TEXT_ARRAY)]).await?;
    Ok(row.get(0))
}

/// Whether a replication slot can still be made, unless there is one.
async fn slots(client: &Client, schema: &str) -> Result<Option<Fault>, Fault> {
    const SLOTS: &str = "
SELECT count(*)::int4, current_setting('max_replication_slots')::int4,
       (count(*) FILTER (WHERE slot_name ~ $1 AND database = current_database()))::int4,
       (SELECT count(*)::int4 FROM pg_stat_replication), current_setting('max_wal_senders')::int4
FROM pg_replication_slots";
    let pattern = slot_pattern(schema);
    let row = one(client, SLOTS, &[(&pattern, Type::TEXT)]).await?;
    let [slots, slots_max, ours, senders, senders_max]: [i32; 5] = std::array::from_fn(|index| row.get(index));
    if ours > 0 {
        return Ok(None);
    }
    let taken = |setting: &str, max: i32| Some(Fault::SlotsExhausted(format!("{max} of {setting} = {max} are taken")));
    Ok(match (slots >= slots_max, senders >= senders_max) {
        (true, _) => taken("max_replication_slots", slots_max),
        (false, true) => taken("max_wal_senders", senders_max),
        (false, false) => None,
    })
}

/// Nothing where the role may not ask.
pub(in super::super) async fn identity(client: &Client) -> Option<Identity> {
    const IDENTITY: &str = "
SELECT (SELECT system_identifier::text FROM pg_control_system()) || '/'
         || (SELECT oid::text FROM pg_database WHERE datname = current_database()),
       (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8::text";
    match client.query_typed(IDENTITY, &[]).await {
        Ok(rows) => rows.first().map(|row| Identity { database: row.get(0), started: row.get(1) }),
        Err(error) => {
            tracing::debug!(error = described(&error), "the server does not tell who it is");
            None
        }
    }
}

/// Names of slots that the data plane makes.
pub(in super::super) fn slot_pattern(schema: &str) -> String {
    format!("^{schema}_[a-z]+$")
}

/// The newest replica's slot is gone, or has lost its log. What cannot be read is not lost.
async fn is_slot_lost(client: &Client, schema: &str) -> bool {
    let table = format!("\"{schema}\".\"replicas\"");
    let exists = one(client, "SELECT to_regclass($1) IS NOT NULL", &[(&table, Type::TEXT)]).await;
    if !exists.is_ok_and(|row| row.get(0)) {
        return false;
    }
    let newest = format!(
        "SELECT s.restart_lsn IS NULL OR coalesce(s.wal_status, '') = 'lost'
         FROM {table} r LEFT JOIN pg_replication_slots s ON s.slot_name = r.\"slot\"
         WHERE r.\"initialSyncContext\" IS NOT NULL ORDER BY r.\"rank\" DESC LIMIT 1"
    );
    match client.query_typed(&newest, &[]).await {
        Ok(rows) => rows.first().is_some_and(|row| row.get(0)),
        Err(error) => {
            tracing::debug!(table, error = described(&error), "the replicas cannot be read");
            false
        }
    }
}

type Parameter<'a> = (&'a (dyn tokio_postgres::types::ToSql + Sync), Type);

async fn one(client: &Client, statement: &str, parameters: &[Parameter<'_>]) -> Result<Row, Fault> {
    let failed = |text: String| Fault::Unreachable(format!("the server does not answer as Postgres does: {text}"));
    let rows = client.query_typed(statement, parameters).await.map_err(|error| failed(described(&error)))?;
    rows.into_iter().next().ok_or_else(|| failed("no row".to_owned()))
}
