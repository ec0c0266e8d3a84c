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

mod held;
mod sql;
mod text;

use std::time::Duration;

use futures_util::TryStreamExt;
use protocol::schema::ClientSchema;
use rows::{Cookie, Version};
use rustc_hash::FxHashMap;
use tokio_postgres::types::Type;
use tokio_postgres::{Row, Transaction};
use tracing::{debug, warn};

use super::connection::{Connection, Open, Parameter};
use super::fault::Fault;
use super::history::as_i64;
use super::write::as_ms;
use super::{Claim, LineageId, NodeId};
use held::Bases;

/// The reference writes large changes of rows a moment after what else it remembers. What is not there by then never comes.
const ROWS_LATE_MAX: Duration = Duration::from_secs(10);
/// So long the replica here is given to reach what the reference told clients of: one that does not is of another database.
const AHEAD_MAX: Duration = Duration::from_secs(300);
/// Longest client schema, and all definitions of queries together, as text.
const TEXT_BYTES_MAX: i64 = 8 << 20;
const CLIENTS_MAX: i64 = 10_000;
const QUERIES_MAX: i64 = 20_000;
const DESIRES_MAX: i64 = 100_000;
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
    /// Another node was faster, or others of the same transaction have so many rows that it comes after them.
    Again,
    /// What is remembered cannot be used.
    Unusable,
}

/// Why a group was not taken.
enum Refusal {
    Nothing,
    NotYet,
    AfterOthers,
    Unusable(String),
}

impl Refusal {
    fn unusable(reason: &str) -> Refusal {
        Refusal::Unusable(reason.to_owned())
    }
}

/// What is stored of a group.
struct Found {
    record: String,
    /// The rows that its clients may hold.
    base: Vec<u8>,
    /// How far they were told.
    bound: Version,
}

/// Takes groups over that this store does not know, in one transaction; the outcomes are in the order of the claims. An error
/// leaves each as it was. One that comes again may be that of a single group: the caller then asks for each alone.
pub(super) async fn take(
    connection: &mut Connection,
    schema: &str,
    node: NodeId,
    claims: &[&Claim],
    inherit: &Inherit,
    within: Duration,
) -> Result<Vec<Outcome>, Fault> {
    let mut guard = connection.opened().await;
    let open = guard.as_mut().expect("opened above");
    let taking = async {
        let taken = try_take(open, schema, node, claims, inherit).await;
        match (taken, claims) {
            // Tables that are not understood are left as they are.
            (Err(fault), [claim]) if fault.is_final() => Ok(vec![bury(open, schema, claim, &fault.describe()).await?]),
            (taken, _) => taken,
        }
    };
    match tokio::time::timeout(within, taking).await {
        Ok(outcomes) => outcomes,
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
    claims: &[&Claim],
    inherit: &Inherit,
) -> Result<Vec<Outcome>, Fault> {
    let transaction = open.begin().await?;
    let found = read(&transaction, schema, claims, inherit).await?;
    let mut taking = Taking::default();
    for (claim, found) in claims.iter().zip(&found) {
        if let Ok(found) = found {
            taking.add(claim, found);
        }
    }
    let taken = if taking.groups.is_empty() { Vec::new() } else { taking.store(&transaction, schema, node).await? };
    let unknown: Vec<&str> = claims.iter().zip(&found).filter_map(|(claim, found)| unknown(claim, found)).collect();
    let known = match unknown.as_slice() {
        [] => Vec::new(),
        // Maybe because another node takes it, which was waited for.
        unknown => transaction.query_typed(&sql::taken(schema), &[(&unknown, Type::TEXT_ARRAY)]).await?,
    };
    transaction.commit().await?;
    let has = |rows: &[Row], group: &str| rows.iter().any(|row| row.get::<_, &str>(0) == group);
    let mut outcomes = Vec::with_capacity(claims.len());
    for (claim, found) in claims.iter().zip(found) {
        outcomes.push(match found {
            Ok(Found { record, base, bound }) if has(&taken, &claim.group) => {
                debug!(bytes = base.len(), "a client group goes on from what Rocicorp's server remembers");
                Outcome::Taken { record, bound }
            }
            Ok(_) | Err(Refusal::AfterOthers) => Outcome::Again,
            Err(Refusal::Nothing) if has(&known, &claim.group) => Outcome::Again,
            Err(Refusal::Nothing) => Outcome::Nothing,
            Err(Refusal::NotYet) => Outcome::NotYet,
            Err(Refusal::Unusable(reason)) => bury(open, schema, claim, &reason).await?,
        });
    }
    Ok(outcomes)
}

fn unknown<'a>(claim: &&'a Claim, found: &Result<Found, Refusal>) -> Option<&'a str> {
    matches!(found, Err(Refusal::Nothing)).then_some(claim.group.as_str())
}

/// Makes the reference forget a group whose clients start over.
async fn bury(open: &Open, schema: &str, claim: &Claim, reason: &str) -> Result<Outcome, Fault> {
    warn!(reason, "what Rocicorp's server remembers of a client group cannot be used: its clients start over");
    match open.query(&sql::bury(schema), &[(&claim.group, Type::TEXT)]).await {
        Err(fault) if !fault.is_final() => Err(fault),
        _ => Ok(Outcome::Unusable),
    }
}

/// The columns of what is stored of several groups.
#[derive(Default)]
struct Taking<'a> {
    groups: Vec<&'a str>,
    bounds: Vec<i64>,
    records: Vec<&'a str>,
    lineages: Vec<LineageId>,
    bases: Vec<&'a [u8]>,
    ages: Vec<i64>,
}

impl<'a> Taking<'a> {
    fn add(&mut self, claim: &'a Claim, found: &'a Found) {
        self.groups.push(&claim.group);
        self.bounds.push(as_i64(found.bound));
        self.records.push(&found.record);
        self.lineages.push(claim.lineage);
        self.bases.push(&found.base);
        self.ages.push(as_ms(claim.connected_at.elapsed()));
    }

    /// A row for each of which no other node was faster.
    async fn store(&self, transaction: &Transaction<'_>, schema: &str, node: NodeId) -> Result<Vec<Row>, Fault> {
        let parameters: [Parameter<'_>; 7] = [
            (&node, Type::INT8),
            (&self.groups, Type::TEXT_ARRAY),
            (&self.bounds, Type::INT8_ARRAY),
            (&self.records, Type::TEXT_ARRAY),
            (&self.lineages, Type::INT8_ARRAY),
            (&self.bases, Type::BYTEA_ARRAY),
            (&self.ages, Type::INT8_ARRAY),
        ];
        Ok(transaction.query_typed(&sql::take(schema), &parameters).await?)
    }
}

/// What is remembered of each group.
async fn read(
    transaction: &Transaction<'_>,
    schema: &str,
    claims: &[&Claim],
    inherit: &Inherit,
) -> Result<Vec<Result<Found, Refusal>>, Fault> {
    let names: Vec<&str> = claims.iter().map(|claim| claim.group.as_str()).collect();
    let groups: Parameter<'_> = (&names, Type::TEXT_ARRAY);
    let limit = |most| (most, Type::INT8);
    let (text, clients, queries, desires) = (
        limit(&TEXT_BYTES_MAX as &(dyn tokio_postgres::types::ToSql + Sync)),
        limit(&CLIENTS_MAX),
        limit(&QUERIES_MAX),
        limit(&DESIRES_MAX),
    );
    let (of_instances, of_queries) = ([groups.clone(), text.clone()], [groups.clone(), text, queries]);
    let (of_clients, of_desires) = ([groups.clone(), clients], [groups.clone(), desires]);
    let texts =
        [sql::shape(schema), sql::instance(schema), sql::clients(schema), sql::queries(schema), sql::desires(schema)];
    let [shape, instances, clients, queries, desires] = &texts;
    // All at once. The second locks the groups, so the others see one state of each.
    let (shape, instances, clients, queries, desires) = tokio::join!(
        transaction.query_typed(shape, &[]),
        transaction.query_typed(instances, &of_instances),
        transaction.query_typed(clients, &of_clients),
        transaction.query_typed(queries, &of_queries),
        transaction.query_typed(desires, &of_desires),
    );
    let shape = shape?;
    let (instances, clients, queries, desires) =
        (by_group(instances?), by_group(clients?), by_group(queries?), by_group(desires?));
    let mut found = Vec::with_capacity(claims.len());
    for claim in claims {
        let instance = of(&instances, claim).first().ok_or(Refusal::Nothing);
        found.push(check_shape(shape.first()).and(instance).and_then(|instance| {
            let (clients, queries, desires) = (of(&clients, claim), of(&queries, claim), of(&desires, claim));
            remembered(claim, instance, clients, queries, desires)
        }));
    }
    let mut bases = Bases::new(claims, &found, inherit);
    let text = sql::rows(schema);
    let stream = transaction.query_typed_raw(&text, [(&bases.wanted(), Type::TEXT_ARRAY)]).await?;
    let mut stream = std::pin::pin!(stream);
    while let Some(row) = stream.try_next().await?
        && bases.add(row.get(2), row.get(0), row.get(1))
    {}
    let bases = bases.finish();
    let complete = |(remembered, base): (Result<Remembered, Refusal>, Result<Vec<u8>, Refusal>)| {
        let (remembered, base) = (remembered?, base?);
        let bound = remembered.cookie.version;
        let record = (inherit.record)(remembered).map_err(Refusal::Unusable)?;
        Ok(Found { record, base, bound })
    };
    Ok(found.into_iter().zip(bases).map(complete).collect())
}

fn of<'a>(rows: &'a FxHashMap<String, Vec<Row>>, claim: &Claim) -> &'a [Row] {
    rows.get(&claim.group).map_or(&[][..], Vec::as_slice)
}

/// Rows by their last column.
fn by_group(rows: Vec<Row>) -> FxHashMap<String, Vec<Row>> {
    let mut groups: FxHashMap<String, Vec<Row>> = FxHashMap::default();
    for row in rows {
        groups.entry(row.get(row.len() - 1)).or_default().push(row);
    }
    groups
}

fn remembered(
    claim: &Claim,
    instance: &Row,
    clients: &[Row],
    queries: &[Row],
    desires: &[Row],
) -> Result<Remembered, Refusal> {
    let cookie = text::cookie(instance.get(0)).map_err(Refusal::Unusable)?;
    let age = Duration::try_from_secs_f64(instance.get::<_, Option<f64>>(5).unwrap_or(0.0)).unwrap_or_default();
    if instance.get::<_, &str>(0) != instance.get::<_, &str>(1) {
        let never = Refusal::unusable("its rows were not written to the end");
        return Err(if age < ROWS_LATE_MAX { Refusal::NotYet } else { never });
    }
    if cookie.version > claim.version {
        let never = Refusal::unusable("it was told of more than this server's copy of the database has");
        return Err(if age < AHEAD_MAX { Refusal::NotYet } else { never });
    }
    let is_cut = |rows: &[Row], most: i64| rows.len() as u64 >= most.unsigned_abs();
    if is_cut(clients, CLIENTS_MAX) || is_cut(queries, QUERIES_MAX) || is_cut(desires, DESIRES_MAX) {
        return Err(Refusal::unusable("it has too many clients or queries"));
    }
    let client_schema: &str =
        instance.get::<_, Option<&str>>(3).ok_or_else(|| Refusal::unusable("it has no client schema"))?;
    Ok(Remembered {
        cookie,
        version: claim.version,
        lineage: claim.lineage,
        ttl_clock_ms: instance.get(2),
        client_schema: serde_json::from_str(client_schema).map_err(|e| Refusal::Unusable(e.to_string()))?,
        profile_id: instance.get(4),
        clients: clients.iter().map(|row| row.get(0)).collect(),
        queries: queries.iter().map(query).collect::<Result<_, String>>().map_err(Refusal::Unusable)?,
        desires: desires.iter().map(desire).collect::<Result<_, String>>().map_err(Refusal::Unusable)?,
    })
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

/// Voids what is known of groups that this node owns, by name and epoch, if the reference has served them since. True if so.
pub(super) async fn void(
    connection: &mut Connection,
    schema: &str,
    node: NodeId,
    groups: &[(&str, i64)],
) -> Result<Vec<bool>, Fault> {
    let parameters = groups.iter().map(|(group, epoch)| -> [Parameter<'_>; 3] {
        [(group, Type::TEXT), (&node, Type::INT8), (epoch, Type::INT8)]
    });
    let parameters: Vec<_> = parameters.collect();
    match connection.query_each(&sql::void(schema), &parameters).await {
        Ok(answers) => Ok(answers.iter().map(|rows| !rows.is_empty()).collect()),
        // Tables that are not understood say nothing.
        Err(fault) if fault.is_foreign() => Ok(vec![false; groups.len()]),
        Err(fault) => Err(fault),
    }
}
