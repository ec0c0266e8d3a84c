//! The SQL that watches for schema changes: functions that describe what is published, and event triggers that put the
//! descriptions of what a statement changed into the stream.
//!
//! ```text
//! sql_drop, ddl_command_end  event {"type":"tables"} with the tables that differ from what was known of them
//! table_rewrite              event {"type":"rewrite"}: contents are computed anew, which replication does not show
//! ```
//!
//! Events are rows of the published table [`EVENTS`], so they stand in the stream exactly where the change happened, and only who
//! may write that table can make one. The functions set what they depend on: nothing that a user's session sets shows in an event.
//! Statements about temporary objects and about what is not published cost a look at what they touched; nobody waits for another's
//! statement unless one of the two is about a whole schema or publication.
//!
//! A failure must not break the user's statement; it is sent as {"type":"error"} and ends replication with one clear line.
//!
//! The reference uses some of the names. While this server has the shard, nothing of the reference's watches it: [`removal`] takes
//! it away, [`former`] says how to bring it back, and a trigger does that when the reference begins (`hand_back.sql`).

use crate::connect::{quote_identifier, quote_literal};
use crate::options::App;
use crate::tenant::DATA_VERSION;

/// The table whose inserted rows are events.
pub(crate) const EVENTS: &str = "schemaEvents";
/// The column with the event, as JSON.
pub(crate) const EVENT: &str = "event";

/// The trigger that waits for the reference.
pub(crate) const HAND_BACK_TRIGGER: &str = "hand_back";

/// Taken by the functions of former releases, and by the reference's, in every transaction with a schema change.
pub(crate) const FORMER_LOCK: i64 = 4_353_719_051_050_729_648;

/// Commands after which something published may look different. What is dropped, whatever the command, is seen separately.
const TAGS: [&str; 13] = [
    "CREATE TABLE",
    "CREATE TABLE AS",
    "SELECT INTO",
    "ALTER TABLE",
    "CREATE INDEX",
    "ALTER INDEX",
    "CREATE SCHEMA",
    "ALTER SCHEMA",
    "CREATE PUBLICATION",
    "ALTER PUBLICATION",
    "ALTER TYPE",
    "CREATE EXTENSION",
    "COMMENT",
];

/// Tags that make a table which is empty in the stream's eyes: rows follow as inserts.
pub(crate) const CREATING_TAGS: [&str; 4] = ["CREATE TABLE", "CREATE TABLE AS", "SELECT INTO", "CREATE SCHEMA"];

/// What the functions print depends on these, and the sessions that they run in are others'.
const SETTINGS: &str = "SET search_path = pg_catalog, pg_temp
  SET \"DateStyle\" = 'ISO, MDY' SET \"IntervalStyle\" = 'postgres' SET \"TimeZone\" = 'UTC' SET extra_float_digits = 3
  SET bytea_output = 'hex' SET lc_monetary = 'C' SET quote_all_identifiers = off SET standard_conforming_strings = on
  SET row_security = off SET jit = off SET plan_cache_mode = 'force_generic_plan'";

const DESCRIBE: &str = include_str!("ddl/specs.sql");
const WATCH: &str = include_str!("ddl/events.sql");
const HAND_BACK: &str = include_str!("ddl/hand_back.sql");

/// Functions that only this server has.
const OURS: [&str; 11] = [
    "table_specs",
    "descendants",
    "family",
    "record_tables",
    "take_turn",
    "publish_public",
    "check_partitions",
    "emit_event",
    "emit_failure",
    "emit_ddl_drop",
    "emit_ddl_rewrite",
];
/// Functions that the reference has, or both have; others of its begin with `emit_`.
const THEIRS: [&str; 4] = ["schema_specs", "update_schemas", REFERENCE, "notice_ignore"];
/// Every version of the reference has this function, and no release of this server.
const REFERENCE: &str = "get_trigger_context";

/// Creates the functions, after [`removal`]. They work with and without the triggers.
pub(crate) fn functions(app: &App, publications: &[String]) -> String {
    let shard = app.shard_schema();
    let publications = publications.iter().map(|p| quote_literal(p)).collect::<Vec<_>>().join(", ");
    [DESCRIBE, WATCH, HAND_BACK]
        .concat()
        .replace("{settings}", SETTINGS)
        .replace("{shard}", &quote_identifier(&shard))
        .replace("{shard_name}", &quote_literal(&shard))
        .replace("{default_publication}", &quote_literal(&app.default_publication()))
        .replace("{names}", &names())
        .replace("{metadata_publication}", &quote_literal(&app.metadata_publication()))
        .replace("{publications}", &publications)
}

/// All functions that are replaced or handed back but those that begin with `emit_`.
fn names() -> String {
    OURS.iter().chain(&THEIRS).map(|name| quote_literal(name)).collect::<Vec<_>>().join(", ")
}

fn trigger_name(app: &App, kind: &str) -> String {
    format!("{}_ddl_{kind}_{}", app.id, app.shard)
}

/// Removes functions and triggers of ours whatever they look like: former releases and the reference use the same names.
pub(crate) fn removal(app: &App) -> String {
    let triggers = ["start", "end", "drop", "rewrite"].map(|kind| quote_literal(&trigger_name(app, kind))).join(", ");
    let shard = quote_literal(&app.shard_schema());
    let names = names();
    format!(
        "DO $body$
         DECLARE
           it RECORD;
         BEGIN
           FOR it IN SELECT t.evtname FROM pg_event_trigger t JOIN pg_proc f ON f.oid = t.evtfoid
                     WHERE t.evtname IN ({triggers}) OR f.pronamespace = to_regnamespace(quote_ident({shard})) LOOP
             EXECUTE format('DROP EVENT TRIGGER %I', it.evtname);
           END LOOP;
           FOR it IN SELECT f.oid::regprocedure AS called FROM pg_proc f
                     WHERE f.pronamespace = to_regnamespace(quote_ident({shard}))
                       AND (f.proname LIKE 'emit\\_%' OR f.proname IN ({names})) LOOP
             EXECUTE format('DROP FUNCTION %s', it.called);
           END LOOP;
         END $body$;"
    )
}

/// Selects whether the reference's functions are there, and the statements that make them anew after a removal, with its triggers.
pub(crate) fn former(app: &App) -> String {
    let shard = quote_literal(&app.shard_schema());
    let schema = quote_identifier(&app.shard_schema());
    let list = |names: &[&str]| names.iter().map(|name| quote_literal(name)).collect::<Vec<_>>().join(", ");
    format!(
        "WITH function AS (
           SELECT f.* FROM pg_proc f
           WHERE f.pronamespace = to_regnamespace(quote_ident({shard})) AND f.prokind = 'f' AND f.proname NOT IN ({ours})
             AND (f.proname LIKE 'emit\\_%' OR f.proname IN ({theirs}))
         )
         SELECT EXISTS (SELECT FROM function WHERE proname = '{REFERENCE}'), concat(
           (SELECT string_agg(pg_get_functiondef(f.oid) || ';', E'\n' ORDER BY f.oid) FROM function f),
           (SELECT string_agg(format(E'\nCREATE EVENT TRIGGER %I ON %s%s EXECUTE FUNCTION %I.%I();%s', t.evtname, t.evtevent,
                     ' WHEN TAG IN (' || (SELECT string_agg(quote_literal(tag), ', ') FROM unnest(t.evttags) tag) || ')',
                     {shard}, f.proname,
                     CASE t.evtenabled WHEN 'D' THEN format(' ALTER EVENT TRIGGER %I DISABLE;', t.evtname)
                                       WHEN 'R' THEN format(' ALTER EVENT TRIGGER %I ENABLE REPLICA;', t.evtname)
                                       WHEN 'A' THEN format(' ALTER EVENT TRIGGER %I ENABLE ALWAYS;', t.evtname) END), '')
            FROM pg_event_trigger t JOIN function f ON f.oid = t.evtfoid),
           -- It compares with what it saw last, and says what was changed since to the replica that it makes.
           CASE WHEN to_regclass({published}) IS NOT NULL
                THEN E'\nUPDATE {schema}.\"publishedSchema\" SET \"current\" = {schema}.schema_specs();' END)",
        ours = list(&OURS),
        theirs = list(&THEIRS),
        published = quote_literal(&format!("{schema}.\"publishedSchema\"")),
    )
}

/// Creates the triggers, after [`removal`]. A session that replays others' changes (`session_replication_role`) is watched too.
pub(crate) fn triggers(app: &App) -> String {
    let schema = quote_identifier(&app.shard_schema());
    let tags = TAGS.map(quote_literal).join(", ");
    [
        ("drop", "sql_drop".to_owned()),
        ("end", format!("ddl_command_end WHEN TAG IN ({tags})")),
        ("rewrite", "table_rewrite".to_owned()),
    ]
    .map(|(kind, event)| {
        let name = quote_identifier(&trigger_name(app, kind));
        format!(
            "CREATE EVENT TRIGGER {name} ON {event} EXECUTE FUNCTION {schema}.emit_ddl_{kind}();
             ALTER EVENT TRIGGER {name} ENABLE ALWAYS;"
        )
    })
    .concat()
}

/// Lets the reference have the shard back when it notes its version; after [`functions`].
pub(crate) fn watch_for_reference(app: &App) -> String {
    let schema = quote_identifier(&app.shard_schema());
    format!(
        "CREATE OR REPLACE TRIGGER {HAND_BACK_TRIGGER} AFTER UPDATE ON {schema}.\"versionHistory\" FOR EACH ROW
           WHEN (OLD.\"dataVersion\" = {DATA_VERSION} AND NEW.\"dataVersion\" <> {DATA_VERSION})
           EXECUTE FUNCTION {schema}.hand_back();
         ALTER TABLE {schema}.\"versionHistory\" ENABLE ALWAYS TRIGGER {HAND_BACK_TRIGGER};"
    )
}
