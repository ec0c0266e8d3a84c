//! Statements over the tables that Rocicorp's server made, and the ones that end its part.

use super::super::sql::quoted;

/// Shapes of the tables that are known: those of the reference's releases 1.0 to 1.9.
pub(super) const SHAPES: std::ops::RangeInclusive<i32> = 16..=17;

/// The version of the tables' shape that the newest of its servers made, and the one of the last server that ran.
pub(super) fn shape(schema: &str) -> String {
    format!(r#"SELECT "schemaVersion", "dataVersion" FROM {}."versionHistory""#, quoted(schema))
}

/// Locks what is remembered of a group, so that the reference's flushes wait: version, version of the rows, clock, client
/// schema, profile, and the seconds since it was last of use. `$2` is the longest schema that is read.
pub(super) fn instance(schema: &str) -> String {
    let s = quoted(schema);
    format!(
        r#"SELECT i.version, coalesce(r.version, '00'), i."ttlClock",
            CASE WHEN octet_length(i."clientSchema"::text) <= $2 THEN i."clientSchema"::text END, i."profileID",
            extract(epoch FROM clock_timestamp() - greatest(i."lastActive", i."grantedAt"))::float8
         FROM {s}.instances i LEFT JOIN {s}."rowsVersion" r ON r."clientGroupID" = i."clientGroupID"
         WHERE i."clientGroupID" = $1 AND i.deleted IS NOT TRUE FOR UPDATE OF i"#
    )
}

/// Whether the group is this store's by now.
pub(super) fn is_taken(schema: &str) -> String {
    format!("SELECT EXISTS (SELECT FROM {}.groups WHERE id = $1)", quoted(schema))
}

pub(super) fn clients(schema: &str) -> String {
    format!(r#"SELECT "clientID" FROM {}.clients WHERE "clientGroupID" = $1 LIMIT $2"#, quoted(schema))
}

/// Definitions are read up to `$2` bytes in all; what is beyond that comes without one.
pub(super) fn queries(schema: &str) -> String {
    format!(
        r#"SELECT hash, CASE WHEN running <= $2 THEN ast END, CASE WHEN running <= $2 THEN name END,
            CASE WHEN running <= $2 THEN args END, got, deleted
         FROM (SELECT "queryHash" AS hash, "clientAST"::text AS ast, "queryName" AS name, "queryArgs"::text AS args,
                "patchVersion" AS got, deleted IS TRUE AS deleted,
                sum(coalesce(octet_length("clientAST"::text), 0) + coalesce(octet_length("queryName"), 0)
                    + coalesce(octet_length("queryArgs"::text), 0)) OVER (ORDER BY "queryHash") AS running
            FROM {}.queries WHERE "clientGroupID" = $1 AND internal IS NOT TRUE) q
         LIMIT $3"#,
        quoted(schema)
    )
}

pub(super) fn desires(schema: &str) -> String {
    format!(
        r#"SELECT "clientID", "queryHash", "patchVersion", deleted IS TRUE, "ttlMs", "inactivatedAtMs"
         FROM {}.desires WHERE "clientGroupID" = $1 LIMIT $2"#,
        quoted(schema)
    )
}

/// Every row that a client may hold: those that are, and those that were and that not every client knows to be gone.
pub(super) fn rows(schema: &str) -> String {
    format!(
        r#"SELECT "table", "rowKey"::text FROM {}.rows WHERE "clientGroupID" = $1 ORDER BY "table""#,
        quoted(schema)
    )
}

/// What the reference's own clean-up leaves of a group.
const TOMBSTONE: &str = r#"UPDATE {s}.instances SET deleted = true, version = '00', "ttlClock" = 0, "replicaVersion" = NULL,
            owner = NULL, "grantedAt" = NULL, "clientSchema" = NULL"#;

/// One that was none yet, in tables of a known shape.
fn is_live() -> String {
    let (first, last) = (SHAPES.start(), SHAPES.end());
    format!(
        r#""clientGroupID" = $1 AND deleted IS NOT TRUE AND EXISTS (SELECT FROM {{s}}."versionHistory"
            WHERE "schemaVersion" BETWEEN {first} AND {last} AND "dataVersion" BETWEEN {first} AND {last})"#
    )
}

/// Makes the reference forget a group, in tables of a known shape.
pub(super) fn bury(schema: &str) -> String {
    format!("{TOMBSTONE} WHERE {}", is_live()).replace("{s}", &quoted(schema))
}

/// Makes the group node `$1`'s and no longer the reference's: `$2` group, `$3` bound, `$4` record, `$5` lineage, `$6` its
/// rows, `$7` milliseconds since the connect that asked for it. False when another node was faster.
pub(super) fn take(schema: &str) -> String {
    format!(
        r#"WITH g AS (INSERT INTO {{s}}.groups
                (id, owner, epoch, bound, granted, taken, replica, replica_version, record, lineages)
            SELECT $2, n.id, 1, $3, clock_timestamp() - $7 * interval '1 ms', clock_timestamp(), n.replica,
                n.replica_version, $4, ARRAY[$5]
            FROM {{s}}.nodes n WHERE n.id = $1
            ON CONFLICT (id) DO NOTHING RETURNING id),
         l AS (INSERT INTO {{s}}.lineages (id, node, key, version, base)
            SELECT $5, $1, 'reference', 0, $6 FROM g),
         i AS ({TOMBSTONE} FROM g WHERE "clientGroupID" = g.id)
         SELECT EXISTS (SELECT FROM g)"#
    )
    .replace("{s}", &quoted(schema))
}

/// Voids what is known of group `$1`, which node `$2` owns with epoch `$3`, if the reference has served it since. A row if so.
pub(super) fn void(schema: &str) -> String {
    format!(
        "WITH i AS ({TOMBSTONE} WHERE {} RETURNING 1)
         UPDATE {{s}}.groups SET record = NULL, lineages = '{{}}', bound = 0
         WHERE id = $1 AND owner = $2 AND epoch = $3 AND EXISTS (SELECT FROM i) RETURNING 1",
        is_live()
    )
    .replace("{s}", &quoted(schema))
}

/// Removes what is left of a few groups of which there is a tombstone, as the reference does when it makes one.
pub(super) fn clear(schema: &str) -> String {
    r#"WITH gone AS (SELECT i."clientGroupID" AS id FROM {s}.instances i JOIN {s}."rowsVersion" r USING ("clientGroupID")
            WHERE i.deleted LIMIT $1),
         q AS (DELETE FROM {s}.queries WHERE "clientGroupID" IN (SELECT id FROM gone)),
         c AS (DELETE FROM {s}.clients WHERE "clientGroupID" IN (SELECT id FROM gone))
         DELETE FROM {s}."rowsVersion" WHERE "clientGroupID" IN (SELECT id FROM gone)"#
        .replace("{s}", &quoted(schema))
}
