//! Statements of the CVR database. None is prepared under a name and none sets anything for a session: a pooler may give each
//! transaction another connection.

/// `name` as an identifier.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Seconds since the Unix epoch before which no node was registered: numbers of nodes have 31 bits.
const FIRST_SECOND: i64 = 1_750_000_000;

/// Registers a process. Numbers follow the time, so that none is used twice, be it that the tables were dropped in between:
/// numbers of lineages are made of them, and a record may name lineages that are long gone. No row if another process took the
/// number at the same moment.
pub fn register(schema: &str) -> String {
    let s = quoted(schema);
    let sequence = format!("pg_get_serial_sequence({}, 'id')", literal(&format!("{s}.nodes")));
    format!(
        "INSERT INTO {s}.nodes (id, replica, replica_version)
         SELECT setval({sequence}, greatest(nextval({sequence}),
            extract(epoch FROM clock_timestamp())::bigint - {FIRST_SECOND})), $1, $2
         ON CONFLICT (id) DO NOTHING RETURNING id"
    )
}

/// Registers a process again whose row is gone, under its number.
pub fn register_again(schema: &str) -> String {
    format!(
        "INSERT INTO {}.nodes (id, losses, replica, replica_version) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
        quoted(schema)
    )
}

/// `$1` node, `$2` version that clients may be told of, `$3` losses that the node knows, `$4` number of the attempt. Nothing is
/// written unless the losses are these: whoever takes a group from the node changes them. Nor if a later attempt was there
/// before: this one was given up, and what it brings may be older than what is stored.
const FENCE: &str = "mine AS (UPDATE {s}.nodes
            SET version = greatest(version, $2), seen = clock_timestamp(), attempt = $4, suspected = NULL
            WHERE id = $1 AND losses = $3 AND attempt < $4 RETURNING id, replica, replica_version)";
const DELTAS: &str = "d AS (INSERT INTO {s}.deltas (lineage, version, entries)
            SELECT * FROM unnest($5::bigint[], $6::bigint[], $7::bytea[]) WHERE EXISTS (SELECT FROM mine)
            ON CONFLICT (lineage, version) DO NOTHING)";

/// The records of groups, in six parameters from `$first` on.
fn records(first: usize) -> String {
    let [id, epoch, record, lineages, idle, age_ms] = std::array::from_fn(|n| format!("${}", first + n));
    format!(
        "g AS (INSERT INTO {{s}}.groups AS x
                (id, owner, epoch, record, lineages, idle, granted, taken, replica, replica_version)
            SELECT u.id, $1, u.epoch, u.record, u.lineages::bigint[], u.idle,
                clock_timestamp() - u.age_ms * interval '1 ms', clock_timestamp(), mine.replica, mine.replica_version
            FROM unnest({id}::text[], {epoch}::bigint[], {record}::text[], {lineages}::text[], {idle}::bool[], {age_ms}::bigint[])
                AS u (id, epoch, record, lineages, idle, age_ms), mine
            ON CONFLICT (id) DO UPDATE
            SET record = EXCLUDED.record, lineages = EXCLUDED.lineages, idle = EXCLUDED.idle,
                last_active = now(), granted = greatest(x.granted, EXCLUDED.granted)
            WHERE x.owner = EXCLUDED.owner AND x.epoch = EXCLUDED.epoch
            RETURNING x.id)
         SELECT ARRAY(SELECT unnest({id}::text[]) EXCEPT SELECT id FROM g) FROM mine"
    )
}

/// One statement, so one round trip and one transaction, and no lock is held while this process sleeps. A replayed flush (the
/// answer to the first attempt was lost) changes nothing the second time: a lineage has one delta per version, and what stands
/// there may be merged already.
///
/// Returns no row when it was refused, else the groups whose records are not stored, because they are another node's.
pub fn flush(schema: &str) -> String {
    let records = records(12);
    format!(
        "WITH {FENCE},
         l AS (INSERT INTO {{s}}.lineages (id, node, key, version, base)
            SELECT u.id, $1, u.key, u.version, u.base
            FROM unnest($8::bigint[], $9::text[], $10::bigint[], $11::bytea[]) AS u (id, key, version, base)
            WHERE EXISTS (SELECT FROM mine)
            ON CONFLICT (id) DO NOTHING),
         {DELTAS},
         {records}"
    )
    .replace("{s}", &quoted(schema))
}

/// The flush when clients come and go: nothing but records. It takes the database half the time to plan.
pub fn flush_records(schema: &str) -> String {
    format!("WITH {FENCE}, {}", records(5)).replace("{s}", &quoted(schema))
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

/// Also says whether Rocicorp's server remembers client groups in the same schema.
pub fn claim(schema: &str) -> String {
    let s = quoted(schema);
    let reference = literal(&format!("{s}.instances"));
    format!(
        "SELECT verdict, group_record, group_epoch, group_bound, from_node, wait_ms, to_regclass({reference}) IS NOT NULL
         FROM {s}.claim_1($1, $2, $3, $4, $5, $6)"
    )
}

pub fn retire(schema: &str) -> String {
    format!("SELECT {}.retire_1($1, $2)", quoted(schema))
}

/// Notes nodes that were not seen for `$1` milliseconds, if the database was there for them to be seen. A node that lives
/// clears that away with its next heartbeat.
pub fn suspect(schema: &str) -> String {
    format!(
        "UPDATE {}.nodes SET suspected = clock_timestamp() WHERE suspected IS NULL
         AND greatest(seen, pg_postmaster_start_time()) <= clock_timestamp() - $1 * interval '1 ms'",
        quoted(schema)
    )
}

/// Nodes that were not seen for `$1` milliseconds, and not since that was noted `$2` milliseconds ago: should the server's clock
/// have jumped, all nodes look as if they had not been seen.
pub fn unseen(schema: &str) -> String {
    format!(
        "SELECT id FROM {}.nodes WHERE suspected <= clock_timestamp() - $2 * interval '1 ms'
         AND greatest(seen, pg_postmaster_start_time()) <= clock_timestamp() - $1 * interval '1 ms'",
        quoted(schema)
    )
}

/// The base of a lineage and the deltas after it, as of one moment: another process may be merging them.
pub fn load_history(schema: &str) -> String {
    let s = quoted(schema);
    format!(
        "SELECT version, base, false, true FROM {s}.lineages WHERE id = $1
         UNION ALL
         (SELECT d.version, d.entries, d.created < now() - make_interval(hours => $2), false FROM {s}.deltas d
          JOIN {s}.lineages l ON l.id = d.lineage WHERE d.lineage = $1 AND d.version > l.version ORDER BY d.version)"
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
        "DELETE FROM {}.groups WHERE owner IS NULL AND last_active < now() - make_interval(hours => $1) RETURNING 1",
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

/// Removes a lineage with all that is stored of it.
pub fn forget_lineage(schema: &str) -> String {
    let s = quoted(schema);
    format!("WITH gone AS (DELETE FROM {s}.lineages WHERE id = $1) DELETE FROM {s}.deltas WHERE lineage = $1")
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
