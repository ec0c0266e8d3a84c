//! Client groups that Rocicorp's server remembers in the same schema. They are taken over with all that their clients hold, so
//! that these go on from the cookies that it gave them.
//!
//! What its clients desire becomes the group's record, and the rows that they may hold become a history of this store's own.
//! From then on nothing of the group is read from the reference's tables.
//!
//! Invariant: a group is one server's. A client that was told something by one of them must not be told by the other one what
//! has happened since a moment that is not the client's. So the transaction that makes a group this store's leaves a
//! tombstone of it in the reference's `instances`, as the reference's own clean-up does. Should the reference still run, it looks
//! at that row in every flush, which comes before the end of every poke, and sends the group's clients away. Should it run
//! again, whoever comes to it with the group starts over, and does not drop its database. And a group of this store that has
//! a row there which is no tombstone was served there since: nobody can say which of the two gave out a cookie, so its
//! clients start over.

mod sql;
mod text;

use std::time::Duration;

use futures_util::TryStreamExt;
use protocol::schema::ClientSchema;
use rows::{Cookie, Version};
use tokio_postgres::types::Type;
use tokio_postgres::{Row, Transaction};
use tracing::{debug, warn};

use super::connection::{Connection, Open, Parameter};
use super::fault::Fault;
use super::history::as_i64;
use super::write::as_ms;
use super::{Claim, LineageId, NodeId};
use crate::convert::KeyChoice;
use crate::row_id::{Encoder, Presence};

/// The reference writes large changes of rows a moment after what else it remembers. What is not there by then never comes.
const ROWS_LATE_MAX: Duration = Duration::from_secs(10);
/// So long the replica here is given to reach what the reference told clients of: one that does not is of another database.
const AHEAD_MAX: Duration = Duration::from_secs(300);
/// Longest client schema, and all definitions of queries together, as text.
const TEXT_BYTES_MAX: i64 = 8 << 20;
const CLIENTS_MAX: i64 = 10_000;
const QUERIES_MAX: i64 = 20_000;
const DESIRES_MAX: i64 = 100_000;
/// Rows of one group as they are stored here; about a million.
const ROWS_BYTES_MAX: usize = 32 << 20;

/// Groups whose rows are removed in one statement: others wait for it.
const CLEARED_AT_ONCE: i64 = 10;

/// What Rocicorp's server remembers of a client group.
#[derive(Debug)]
pub struct Remembered {
    /// The greatest that any client was sent.
    pub cookie: Cookie,
    /// The replica's version when it was read.
    pub version: Version,
    /// The history that has every row that its clients may hold.
    pub lineage: LineageId,
    pub ttl_clock_ms: f64,
    pub client_schema: ClientSchema,
    pub profile_id: Option<String>,
    pub clients: Vec<String>,
    pub queries: Vec<RememberedQuery>,
    pub desires: Vec<RememberedDesire>,
}

#[derive(Debug)]
pub struct RememberedQuery {
    pub hash: String,
    /// As JSON, of a query that a client defined.
    pub ast: Option<String>,
    pub name: Option<String>,
    /// As JSON, of a query that has a name.
    pub args: Option<String>,
    /// Since when clients have its rows, or do not have them any more.
    pub since: Option<Cookie>,
    pub is_deleted: bool,
}

#[derive(Debug)]
pub struct RememberedDesire {
    pub client: String,
    pub hash: String,
    pub since: Cookie,
    pub is_deleted: bool,
    /// For ever if there is none.
    pub ttl_ms: Option<f64>,
    pub inactivated_at_ms: Option<f64>,
}

/// What the store is told for it.
#[derive(Clone, Debug)]
pub struct Inherit {
    /// Makes the record of a group, or says why what is remembered cannot be used.
    pub record: fn(Remembered) -> Result<String, String>,
    /// Tables whose rows clients do not hold as rows.
    pub own_tables: [String; 2],
}

/// What came of a group that this store does not know.
pub(super) enum Outcome {
    /// The reference does not remember it.
    Nothing,
    /// It is this node's, and no client was sent a plain cookie beyond the version.
    Taken { record: String, bound: Version },
    /// It can be taken in a moment.
    NotYet,
    /// Another node was faster.
    Again,
    /// What is remembered cannot be used.
    Unusable,
}

/// Why nothing was taken.
enum Refusal {
    Nothing,
    NotYet,
    Unusable(String),
    Fault(Fault),
}

impl From<tokio_postgres::Error> for Refusal {
    fn from(error: tokio_postgres::Error) -> Refusal {
        let fault = Fault::Database(error);
        if fault.is_final() { Refusal::Unusable(fault.describe()) } else { Refusal::Fault(fault) }
    }
}

/// Takes a group over that this store does not know.
pub(super) async fn take(
    connection: &mut Connection,
    schema: &str,
    node: NodeId,
    claim: &Claim,
    inherit: &Inherit,
    within: Duration,
) -> Result<Outcome, Fault> {
    let mut guard = connection.opened().await;
    let open = guard.as_mut().expect("opened above");
    match tokio::time::timeout(within, try_take(open, schema, node, claim, inherit)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            *guard = None;
            Err(Fault::Silent(within))
        }
    }
}

async fn try_take(
    open: &mut Open,
    schema: &str,
    node: NodeId,
    claim: &Claim,
    inherit: &Inherit,
) -> Result<Outcome, Fault> {
    let transaction = open.begin().await?;
    let (record, base, bound) = match read(&transaction, schema, claim, inherit).await {
        Ok(read) => read,
        Err(Refusal::Nothing) => {
            // Maybe because another node takes it, which was waited for.
            let taken = transaction.query_typed(&sql::is_taken(schema), &[(&claim.group, Type::TEXT)]).await?;
            let is_taken = taken.first().is_some_and(|row| row.get(0));
            return Ok(if is_taken { Outcome::Again } else { Outcome::Nothing });
        }
        Err(Refusal::NotYet) => return Ok(Outcome::NotYet),
        Err(Refusal::Fault(fault)) => return Err(fault),
        Err(Refusal::Unusable(reason)) => {
            warn!(reason, "what Rocicorp's server remembers of a client group cannot be used: its clients start over");
            drop(transaction);
            return match open.query(&sql::bury(schema), &[(&claim.group, Type::TEXT)]).await {
                Err(fault) if !fault.is_final() => Err(fault),
                // Tables that are not understood are left as they are.
                _ => Ok(Outcome::Unusable),
            };
        }
    };
    let (bound_number, age) = (as_i64(bound), as_ms(claim.connected_at.elapsed()));
    let parameters: [Parameter<'_>; 7] = [
        (&node, Type::INT8),
        (&claim.group, Type::TEXT),
        (&bound_number, Type::INT8),
        (&record, Type::TEXT),
        (&claim.lineage, Type::INT8),
        (&base, Type::BYTEA),
        (&age, Type::INT8),
    ];
    let taken = transaction.query_typed(&sql::take(schema), &parameters).await?;
    if !taken.first().is_some_and(|row| row.get(0)) {
        return Ok(Outcome::Again);
    }
    transaction.commit().await?;
    debug!(bytes = base.len(), "a client group goes on from what Rocicorp's server remembers");
    Ok(Outcome::Taken { record, bound })
}

/// The group's record, the rows that its clients may hold, and how far they were told.
async fn read(
    transaction: &Transaction<'_>,
    schema: &str,
    claim: &Claim,
    inherit: &Inherit,
) -> Result<(String, Vec<u8>, Version), Refusal> {
    let group: Parameter<'_> = (&claim.group, Type::TEXT);
    let limit = |most| (most, Type::INT8);
    let (text, clients, queries, desires) = (
        limit(&TEXT_BYTES_MAX as &(dyn tokio_postgres::types::ToSql + Sync)),
        limit(&CLIENTS_MAX),
        limit(&QUERIES_MAX),
        limit(&DESIRES_MAX),
    );
    let (instance, of_queries) = ([group.clone(), text.clone()], [group.clone(), text, queries]);
    let (of_clients, of_desires) = ([group.clone(), clients], [group.clone(), desires]);
    let texts = [
        sql::shape(schema),
        sql::instance(schema),
        sql::clients(schema),
        sql::queries(schema),
        sql::desires(schema),
        sql::rows(schema),
    ];
    let [shape, instances, clients, queries, desires, rows] = &texts;
    // All at once. The second locks the group, so the others see one state of it.
    let (shape, instances, clients, queries, desires) = tokio::join!(
        transaction.query_typed(shape, &[]),
        transaction.query_typed(instances, &instance),
        transaction.query_typed(clients, &of_clients),
        transaction.query_typed(queries, &of_queries),
        transaction.query_typed(desires, &of_desires),
    );
    check_shape(shape?.first())?;
    let (instances, clients, queries, desires) = (instances?, clients?, queries?, desires?);
    let instance = instances.first().ok_or(Refusal::Nothing)?;
    let unusable = |reason: &str| Refusal::Unusable(reason.to_owned());
    let cookie = text::cookie(instance.get(0)).map_err(Refusal::Unusable)?;
    let age = Duration::try_from_secs_f64(instance.get::<_, Option<f64>>(5).unwrap_or(0.0)).unwrap_or_default();
    if instance.get::<_, &str>(0) != instance.get::<_, &str>(1) {
        let never = unusable("its rows were not written to the end");
        return Err(if age < ROWS_LATE_MAX { Refusal::NotYet } else { never });
    }
    if cookie.version > claim.version {
        let never = unusable("it was told of more than this server's copy of the database has");
        return Err(if age < AHEAD_MAX { Refusal::NotYet } else { never });
    }
    let is_cut = |rows: &[Row], most: i64| rows.len() as u64 >= most.unsigned_abs();
    if is_cut(&clients, CLIENTS_MAX) || is_cut(&queries, QUERIES_MAX) || is_cut(&desires, DESIRES_MAX) {
        return Err(unusable("it has too many clients or queries"));
    }
    let client_schema: &str = instance.get::<_, Option<&str>>(3).ok_or_else(|| unusable("it has no client schema"))?;
    let client_schema: ClientSchema =
        serde_json::from_str(client_schema).map_err(|e| Refusal::Unusable(e.to_string()))?;
    let choice = KeyChoice::of(&client_schema);
    let remembered = Remembered {
        cookie,
        version: claim.version,
        lineage: claim.lineage,
        ttl_clock_ms: instance.get(2),
        client_schema,
        profile_id: instance.get(4),
        clients: clients.iter().map(|row| row.get(0)).collect(),
        queries: queries.iter().map(query).collect::<Result<_, String>>().map_err(Refusal::Unusable)?,
        desires: desires.iter().map(desire).collect::<Result<_, String>>().map_err(Refusal::Unusable)?,
    };
    let record = (inherit.record)(remembered).map_err(Refusal::Unusable)?;
    let mut keys = text::Keys::new(&claim.schema, choice, &inherit.own_tables);
    let mut base = Encoder::default();
    let stream = transaction.query_typed_raw(rows, [(claim.group.as_str(), Type::TEXT)]).await?;
    let mut stream = std::pin::pin!(stream);
    while let Some(row) = stream.try_next().await? {
        if let Some(id) = keys.row_id(row.get(0), row.get(1)).map_err(Refusal::Unusable)? {
            base.push(&id, Presence::Present(Version::ZERO));
        }
        if base.size() > ROWS_BYTES_MAX {
            return Err(unusable("it holds too many rows"));
        }
    }
    Ok((record, base.finish(), cookie.version))
}

fn check_shape(versions: Option<&Row>) -> Result<(), Refusal> {
    let [schema, data] = versions.map_or([0; 2], |row| [row.get(0), row.get(1)]);
    if sql::SHAPES.contains(&schema) && sql::SHAPES.contains(&data) {
        return Ok(());
    }
    Err(Refusal::Unusable(format!("the tables have version {schema} (data: {data}), which is not known here")))
}

fn query(row: &Row) -> Result<RememberedQuery, String> {
    Ok(RememberedQuery {
        hash: row.get(0),
        ast: row.get(1),
        name: row.get(2),
        args: row.get(3),
        since: row.get::<_, Option<&str>>(4).map(text::cookie).transpose()?,
        is_deleted: row.get(5),
    })
}

fn desire(row: &Row) -> Result<RememberedDesire, String> {
    Ok(RememberedDesire {
        client: row.get(0),
        hash: row.get(1),
        since: text::cookie(row.get(2))?,
        is_deleted: row.get(3),
        ttl_ms: row.get(4),
        inactivated_at_ms: row.get(5),
    })
}

/// Removes what the reference's tables still have of a few groups that are this store's by now.
pub(super) async fn clear(connection: &mut Connection, schema: &str) -> Result<(), Fault> {
    match connection.query(&sql::clear(schema), &[(&CLEARED_AT_ONCE, Type::INT8)], 0).await {
        Err(fault) if !fault.is_final() => Err(fault),
        _ => Ok(()),
    }
}

/// Voids what is known of a group that this node owns, if the reference has served it since. True if so.
pub(super) async fn void(
    connection: &mut Connection,
    schema: &str,
    node: NodeId,
    group: &str,
    epoch: i64,
) -> Result<bool, Fault> {
    let parameters: [Parameter<'_>; 3] = [(&group, Type::TEXT), (&node, Type::INT8), (&epoch, Type::INT8)];
    match connection.query(&sql::void(schema), &parameters, 0).await {
        Ok(rows) => Ok(!rows.is_empty()),
        // Tables that are not understood say nothing.
        Err(fault) if fault.is_foreign() => Ok(false),
        Err(fault) => Err(fault),
    }
}
