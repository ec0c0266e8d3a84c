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

use crate::connect::{quote_identifier, quote_literal};
use crate::options::App;

/// The table whose inserted rows are events.
pub(crate) const EVENTS: &str = "schemaEvents";
/// The column with the event, as JSON.
pub(crate) const EVENT: &str = "event";

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

/// Creates the functions, after [`removal`]. They work with and without the triggers.
pub(crate) fn functions(app: &App, publications: &[String]) -> String {
    let shard = app.shard_schema();
    let publications = publications.iter().map(|p| quote_literal(p)).collect::<Vec<_>>().join(", ");
    [DESCRIBE, WATCH]
        .concat()
        .replace("{settings}", SETTINGS)
        .replace("{shard}", &quote_identifier(&shard))
        .replace("{shard_name}", &quote_literal(&shard))
        .replace("{default_publication}", &quote_literal(&app.default_publication()))
        .replace("{publications}", &publications)
}

fn trigger_name(app: &App, kind: &str) -> String {
    format!("{}_ddl_{kind}_{}", app.id, app.shard)
}

/// Removes functions and triggers of ours whatever they look like: former releases and the reference use the same names.
pub(crate) fn removal(app: &App) -> String {
    let triggers = ["start", "end", "drop", "rewrite"].map(|kind| quote_literal(&trigger_name(app, kind))).join(", ");
    let shard = quote_literal(&app.shard_schema());
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
                       AND (f.proname LIKE 'emit\\_%' OR f.proname IN (
                         'schema_specs', 'table_specs', 'descendants', 'family', 'update_schemas', 'record_tables', 'take_turn',
                         'publish_public', 'check_partitions', 'get_trigger_context', 'notice_ignore')) LOOP
             EXECUTE format('DROP FUNCTION %s', it.called);
           END LOOP;
         END $body$;"
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
