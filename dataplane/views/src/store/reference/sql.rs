//! Statements over the tables that Rocicorp's server made, and the ones that end its part.

use super::super::sql::quoted;

/// Shapes of the tables that are known: those of the reference's releases 1.0 to 1.9.
pub(super) const SHAPES: std::ops::RangeInclusive<i32> = 16..=17;

/// The version of the tables' shape that the newest of its servers made, and the one of the last server that ran.
pub(super) fn shape(schema: &str) -> String {
    format!(r#"SELECT "schemaVersion", "dataVersion" FROM {}."versionHistory""#, quoted(schema))
}

/// Locks what is remembered of groups, so that the reference's flushes wait: version, version of the rows, clock, client
/// schema, profile, the seconds since it was last of use, and the group. `$2` is the longest schema that is read. Whoever else
/// locks several locks them in the same order.
pub(super) fn instance(schema: &str) -> String {
    let s = quoted(schema);
    format!(
        r#"SELECT i.version, coalesce(r.version, '00'), i."ttlClock",
            CASE WHEN octet_length(i."clientSchema"::text) <= $2 THEN i."clientSchema"::text END, i."profileID",
            extract(epoch FROM clock_timestamp() - greatest(i."lastActive", i."grantedAt"))::float8, i."clientGroupID"
         FROM {s}.instances i LEFT JOIN {s}."rowsVersion" r ON r."clientGroupID" = i."clientGroupID"
         WHERE i."clientGroupID" = ANY ($1) AND i.deleted IS NOT TRUE
         ORDER BY i."clientGroupID" COLLATE "C" FOR UPDATE OF i"#
    )
}

/// Which groups are this store's by now.
pub(super) fn taken(schema: &str) -> String {
    format!("SELECT id FROM {}.groups WHERE id = ANY ($1)", quoted(schema))
}

/// At most `$2` of each group; the group is the last column, here and below.
pub(super) fn clients(schema: &str) -> String {
    format!(
        r#"SELECT c."clientID", g.id FROM unnest($1) g (id) CROSS JOIN LATERAL (
            SELECT "clientID" FROM {}.clients WHERE "clientGroupID" = g.id LIMIT $2) c"#,
        quoted(schema)
    )
}

/// At most `$3` of each group, whose definitions are read up to `$2` bytes in all; what is beyond that comes without one.
pub(super) fn queries(schema: &str) -> String {
    format!(
        r#"SELECT hash, CASE WHEN running <= $2 THEN ast END, CASE WHEN running <= $2 THEN name END,
            CASE WHEN running <= $2 THEN args END, got, deleted, id
         FROM unnest($1) g (id) CROSS JOIN LATERAL (SELECT "queryHash" AS hash, "clientAST"::text AS ast, "queryName" AS name, "queryArgs"::text AS args,
                "patchVersion" AS got, deleted IS TRUE AS deleted,
                sum(coalesce(octet_length("clientAST"::text), 0) + coalesce(octet_length("queryName"), 0)
                    + coalesce(octet_length("queryArgs"::text), 0)) OVER (ORDER BY "queryHash") AS running
            FROM {}.queries WHERE "clientGroupID" = g.id AND internal IS NOT TRUE LIMIT $3) q"#,
        quoted(schema)
    )
}

/// At most `$2` of each group.
pub(super) fn desires(schema: &str) -> String {
    format!(
        r#"SELECT d."clientID", d."queryHash", d."patchVersion", d.deleted IS TRUE, d."ttlMs", d."inactivatedAtMs", g.id
         FROM unnest($1) g (id) CROSS JOIN LATERAL (SELECT * FROM {}.desires WHERE "clientGroupID" = g.id LIMIT $2) d"#,
        quoted(schema)
    )
}

/// Every row that a client may hold: those that are, and those that were and that not every client knows to be gone.
pub(super) fn rows(schema: &str) -> String {
    format!(
        r#"SELECT "table", "rowKey"::text, "clientGroupID" FROM {}.rows WHERE "clientGroupID" = ANY ($1)
         ORDER BY "clientGroupID", "table""#,
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

/// Makes groups node `$1`'s and no longer the reference's; of each: `$2` group, `$3` bound, `$4` record, `$5` lineage, `$6` its
/// rows, `$7` milliseconds since the connect that asked for it. A row for each of which no other node was faster.
pub(super) fn take(schema: &str) -> String {
    format!(
        r#"WITH g AS (INSERT INTO {{s}}.groups
                (id, owner, epoch, bound, granted, taken, replica, replica_version, record, lineages)
            SELECT c.id, n.id, 1, c.bound, clock_timestamp() - c.age * interval '1 ms', clock_timestamp(), n.replica,
                n.replica_version, c.record, ARRAY[c.lineage]
            FROM {{s}}.nodes n CROSS JOIN unnest($2, $3, $4, $5, $7) c (id, bound, record, lineage, age) WHERE n.id = $1
            ON CONFLICT (id) DO NOTHING RETURNING id),
         l AS (INSERT INTO {{s}}.lineages (id, node, key, version, base)
            SELECT c.lineage, $1, 'reference', 0, c.base
            FROM g JOIN unnest($2, $5, $6) c (id, lineage, base) USING (id)),
         i AS ({TOMBSTONE} FROM g WHERE "clientGroupID" = g.id)
         SELECT id FROM g"#
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
