//! Statements of the CVR database. None is prepared under a name and none sets anything for a session: a pooler may give each
//! transaction another connection.

/// `name` as an identifier.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

pub fn register(schema: &str) -> String {
    format!("INSERT INTO {}.nodes (replica, replica_version) VALUES ($1, $2) RETURNING id", quoted(schema))
}

/// `$1` node, `$2` version that clients may be told of, `$3` losses that the node knows. Nothing is written unless the losses
/// are these: whoever takes a group from the node changes them.
const FENCE: &str = "mine AS (UPDATE {s}.nodes SET version = greatest(version, $2), seen = clock_timestamp()
            WHERE id = $1 AND losses = $3 RETURNING id, replica, replica_version)";
const DELTAS: &str = "d AS (INSERT INTO {s}.deltas (lineage, version, entries)
            SELECT * FROM unnest($4::bigint[], $5::bigint[], $6::bytea[]) WHERE EXISTS (SELECT FROM mine)
            ON CONFLICT (lineage, version) DO NOTHING)";

/// One statement, so one round trip and one transaction, and no lock is held while this process sleeps. A replayed flush (the
/// answer to the first attempt was lost) changes nothing the second time: a lineage has one delta per version, and what stands
/// there may be merged already.
///
/// Returns no row when it was refused, else the groups whose records are not stored, because they are another node's.
pub fn flush(schema: &str) -> String {
    format!(
        "WITH {FENCE},
         l AS (INSERT INTO {{s}}.lineages (id, node, key, version, base)
            SELECT u.id, $1, u.key, u.version, u.base
            FROM unnest($7::bigint[], $8::text[], $9::bigint[], $10::bytea[]) AS u (id, key, version, base)
            WHERE EXISTS (SELECT FROM mine)
            ON CONFLICT (id) DO NOTHING),
         {DELTAS},
         g AS (INSERT INTO {{s}}.groups AS x
                (id, owner, epoch, record, lineages, idle, granted, taken, replica, replica_version)
            SELECT u.id, $1, u.epoch, u.record, u.lineages::bigint[], u.idle,
                clock_timestamp() - u.age_ms * interval '1 ms', clock_timestamp(), mine.replica, mine.replica_version
            FROM unnest($11::text[], $12::bigint[], $13::text[], $14::text[], $15::bool[], $16::bigint[])
                AS u (id, epoch, record, lineages, idle, age_ms), mine
            ON CONFLICT (id) DO UPDATE
            SET record = EXCLUDED.record, lineages = EXCLUDED.lineages, idle = EXCLUDED.idle,
                last_active = now(), granted = greatest(x.granted, EXCLUDED.granted)
            WHERE x.owner = EXCLUDED.owner AND x.epoch = EXCLUDED.epoch
            RETURNING x.id)
         SELECT ARRAY(SELECT unnest($11::text[]) EXCEPT SELECT id FROM g) FROM mine"
    )
    .replace("{s}", &quoted(schema))
}

/// The common flush: nothing but deltas, and how far clients may be told.
pub fn flush_deltas(schema: &str) -> String {
    format!("WITH {FENCE}, {DELTAS} SELECT FROM mine").replace("{s}", &quoted(schema))
}

/// Nothing but how far clients may be told, and that the node lives.
pub fn flush_version(schema: &str) -> String {
    format!("WITH {FENCE} SELECT FROM mine").replace("{s}", &quoted(schema))
}

/// Groups that others took from the node since it knew of `$2` losses.
pub fn losses(schema: &str) -> String {
    format!("SELECT n, \"group\", epoch FROM {}.losses WHERE node = $1 AND n > $2 ORDER BY n", quoted(schema))
}

pub fn forget_losses(schema: &str) -> String {
    format!("DELETE FROM {}.losses WHERE node = $1 AND n <= $2", quoted(schema))
}

pub fn is_registered(schema: &str) -> String {
    format!("SELECT EXISTS (SELECT FROM {}.nodes WHERE id = $1)", quoted(schema))
}

/// Gives groups up, with what their clients may have been told.
pub fn release(schema: &str) -> String {
    let s = quoted(schema);
    format!(
        "UPDATE {s}.groups AS x SET owner = NULL, bound = greatest(x.bound, n.version), last_active = now()
         FROM {s}.nodes AS n, unnest($2::text[], $3::bigint[]) AS u (id, epoch)
         WHERE n.id = $1 AND x.id = u.id AND x.owner = $1 AND x.epoch = u.epoch"
    )
}

pub fn claim(schema: &str) -> String {
    format!(
        "SELECT verdict, group_record, group_epoch, group_bound, from_node, wait_ms
         FROM {}.claim_1($1, $2, $3, $4, $5, $6)",
        quoted(schema)
    )
}

pub fn retire(schema: &str) -> String {
    format!("SELECT {}.retire_1($1, $2)", quoted(schema))
}

/// Nodes that were not seen for `$1` milliseconds, if the database was there for them to be seen.
pub fn unseen(schema: &str) -> String {
    format!(
        "SELECT id FROM {}.nodes
         WHERE greatest(seen, pg_postmaster_start_time()) <= clock_timestamp() - $1 * interval '1 ms'",
        quoted(schema)
    )
}

/// The base and the deltas of a lineage as of one moment: another process may be merging them.
pub fn load_history(schema: &str) -> String {
    let s = quoted(schema);
    format!(
        "SELECT version, base, false, true FROM {s}.lineages WHERE id = $1
         UNION ALL
         (SELECT version, entries, created < now() - make_interval(hours => $2), false FROM {s}.deltas
          WHERE lineage = $1 ORDER BY version)"
    )
}

/// Lineages with many small deltas, of this node and of nodes that are no more.
pub fn fragmented(schema: &str) -> String {
    let s = quoted(schema);
    format!(
        "SELECT d.lineage FROM {s}.deltas d JOIN {s}.lineages l ON l.id = d.lineage
         WHERE l.node = $2 OR NOT EXISTS (SELECT FROM {s}.nodes n WHERE n.id = l.node)
         GROUP BY d.lineage HAVING count(*) >= $1 ORDER BY count(*) DESC LIMIT 200"
    )
}

/// Keeps others from merging a lineage at the same time. No row if one does, or if the lineage is gone.
pub fn lock_lineage(schema: &str) -> String {
    format!("SELECT id FROM {}.lineages WHERE id = $1 FOR UPDATE SKIP LOCKED", quoted(schema))
}

/// Removes what no client can come back for. What has an owner is in use.
pub fn purge_groups(schema: &str) -> String {
    format!(
        "DELETE FROM {}.groups WHERE owner IS NULL AND last_active < now() - make_interval(hours => $1)",
        quoted(schema)
    )
}

/// Marks live lineages, so that [`purge_lineages`] spares them.
pub fn touch_lineages(schema: &str) -> String {
    format!("UPDATE {}.lineages SET last_active = now() WHERE id = ANY($1)", quoted(schema))
}

/// Lineages that no group names: of nodes that are no more at once, of others when they were not live for as long. A record
/// that is about to be written names no lineages but those that it names already and those of its own node.
pub fn purge_lineages(schema: &str) -> String {
    let s = quoted(schema);
    format!(
        "WITH gone AS (
            DELETE FROM {s}.lineages WHERE (last_active < now() - make_interval(hours => $1)
                OR NOT EXISTS (SELECT FROM {s}.nodes WHERE nodes.id = lineages.node))
            AND NOT EXISTS (SELECT FROM (SELECT unnest(lineages) AS id FROM {s}.groups) AS used WHERE used.id = lineages.id)
            RETURNING id),
         deltas AS (DELETE FROM {s}.deltas WHERE lineage IN (SELECT id FROM gone))
         SELECT id FROM gone"
    )
}

pub fn delete_deltas(schema: &str) -> String {
    format!("DELETE FROM {}.deltas WHERE lineage = $1 AND version BETWEEN $2 AND $3", quoted(schema))
}

pub fn insert_delta(schema: &str) -> String {
    format!("INSERT INTO {}.deltas (lineage, version, entries) VALUES ($1, $2, $3)", quoted(schema))
}

/// Moves the beginning of a lineage's history.
pub fn rebase(schema: &str) -> String {
    format!("UPDATE {}.lineages SET version = $2, base = $3 WHERE id = $1", quoted(schema))
}
