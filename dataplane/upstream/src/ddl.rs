//! The SQL that watches for schema changes: a function that prints what is published, and event triggers that put its
//! output into the WAL whenever it changed.
//!
//! ```text
//! ddl_command_start  take a lock, so that two schema changes never miss each other
//! table_rewrite      message {"type":"rewrite"}: the contents of a table are computed anew, which replication does not show
//! ddl_command_end    message {"type":"schema"} with the whole snapshot, if it differs from the last one
//! ```
//!
//! Messages are transactional: they stand in the stream exactly where the change happened. A failure while taking the snapshot
//! must not break the user's statement; it is sent as {"type":"error"} and ends replication with one clear line.

use crate::connect::{quote_identifier, quote_literal};
use crate::options::App;

/// Shared by all applications of a database, and the same that the reference takes.
const DDL_LOCK: i64 = 4_353_719_051_050_729_648;

/// Commands after which something published may look different. Dropping and renaming are seen in the snapshot.
const TAGS: [&str; 20] = [
    "CREATE TABLE",
    "CREATE TABLE AS",
    "SELECT INTO",
    "ALTER TABLE",
    "DROP TABLE",
    "CREATE INDEX",
    "ALTER INDEX",
    "DROP INDEX",
    "CREATE SCHEMA",
    "ALTER SCHEMA",
    "DROP SCHEMA",
    "CREATE PUBLICATION",
    "ALTER PUBLICATION",
    "DROP PUBLICATION",
    "ALTER TYPE",
    "DROP TYPE",
    "DROP EXTENSION",
    "DROP OWNED",
    "CREATE EXTENSION",
    "COMMENT",
];

/// Tags that make a table which is empty in the stream's eyes: rows follow as inserts.
pub(crate) const CREATING_TAGS: [&str; 4] = ["CREATE TABLE", "CREATE TABLE AS", "SELECT INTO", "CREATE SCHEMA"];

fn tags() -> String {
    TAGS.map(quote_literal).join(", ")
}

/// Creates or replaces the functions. They work with and without the triggers.
pub(crate) fn functions(app: &App, publications: &[String]) -> String {
    let schema = quote_identifier(&app.shard_schema());
    let prefix = quote_literal(&app.ddl_prefix());
    let publications = publications.iter().map(|p| quote_literal(p)).collect::<Vec<_>>().join(", ");
    format!(
        r#"
CREATE OR REPLACE FUNCTION {schema}.schema_specs() RETURNS TEXT
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $body$
WITH exported AS (
  SELECT c.oid, n.nspname, c.relname, c.relkind, c.relreplident, c.relnatts,
         count(DISTINCT p.attnames::text) > 1 AS conflict,
         min(p.attnames::text)::name[] AS attnames,
         CASE WHEN bool_or(p.rowfilter IS NULL) THEN NULL
              ELSE string_agg(DISTINCT p.rowfilter, ' OR ' ORDER BY p.rowfilter) END AS filter
  FROM pg_publication_tables p
  JOIN pg_namespace n ON n.nspname = p.schemaname
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
  WHERE p.pubname IN ({publications})
  GROUP BY c.oid, n.nspname, c.relname, c.relkind, c.relreplident, c.relnatts
), described AS (
  SELECT e.oid, json_build_object(
    'oid', e.oid::int8, 'schema', e.nspname, 'name', e.relname, 'identity', e.relreplident,
    'attributes', e.relnatts, 'conflict', e.conflict, 'filter', e.filter,
    'partitions', CASE WHEN e.relkind = 'p' THEN
      (SELECT coalesce(json_agg(t.relid::oid::int8 ORDER BY t.relid::oid), '[]'::json)
       FROM pg_partition_tree(e.oid) t WHERE t.isleaf) END,
    'columns', (
      SELECT coalesce(json_agg(json_build_object(
        'attnum', a.attnum, 'name', a.attname, 'typeOid', t.oid::int8, 'type', t.typname,
        'class', t.typtype,
        'element', CASE WHEN t.typsubscript = 'array_subscript_handler'::regproc AND t.typtype = 'b' THEN
          json_build_object('oid', el.oid::int8, 'type', el.typname, 'class', el.typtype, 'delimiter', el.typdelim) END,
        'dimensions', a.attndims,
        'modifier', a.atttypmod,
        'notNull', a.attnotnull,
        'filled', a.atthasdef OR a.attidentity <> '',
        'missing', CASE WHEN a.atthasmissing THEN a.attmissingval::text END,
        'labels', (SELECT json_agg(json_build_array(l.oid::int8, l.enumlabel) ORDER BY l.oid)
                   FROM pg_enum l WHERE l.enumtypid IN (t.oid, el.oid))
      ) ORDER BY a.attnum), '[]'::json)
      FROM pg_attribute a
      JOIN pg_type t ON t.oid = a.atttypid
      LEFT JOIN pg_type el ON el.oid = t.typelem
      WHERE a.attrelid = e.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname = ANY (e.attnames)
        AND (a.attgenerated = '' OR current_setting('server_version_num')::int >= 180000)
    ),
    'indexes', (
      SELECT coalesce(json_agg(json_build_object(
        'name', x.relname, 'unique', i.indisunique AND i.indimmediate, 'primary', i.indisprimary,
        'identity', i.indisreplident,
        'columns', (
          SELECT json_agg(json_build_array(a.attname, (i.indoption[k.position - 1] & 1) = 1) ORDER BY k.position)
          FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, position)
          JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
          WHERE k.position <= i.indnkeyatts
        )
      ) ORDER BY x.relname), '[]'::json)
      FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
      WHERE i.indrelid = e.oid AND i.indisvalid AND i.indexprs IS NULL AND i.indpred IS NULL
        AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype = 'x')
    )
  ) AS spec
  FROM exported e
)
SELECT json_build_object('tables', coalesce(json_agg(spec ORDER BY oid), '[]'::json))::text FROM described
$body$;

CREATE OR REPLACE FUNCTION {schema}.update_schemas(tag TEXT) RETURNS VOID
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
  known TEXT;
  found_now TEXT;
BEGIN
  SELECT "current"::text INTO known FROM {schema}."publishedSchema";
  found_now := {schema}.schema_specs();
  IF known IS DISTINCT FROM found_now THEN
    UPDATE {schema}."publishedSchema" SET "current" = found_now::json;
    PERFORM pg_logical_emit_message(true, {prefix},
      json_build_object('type', 'schema', 'version', 1, 'tag', tag, 'schema', found_now::json)::text);
  END IF;
EXCEPTION WHEN OTHERS THEN
  PERFORM pg_logical_emit_message(true, {prefix},
    json_build_object('type', 'error', 'version', 1, 'tag', tag, 'message', SQLERRM)::text);
  RAISE WARNING 'cannot record the schema change for replication: %', SQLERRM;
END
$body$;

CREATE OR REPLACE FUNCTION {schema}.emit_ddl_start() RETURNS event_trigger
LANGUAGE plpgsql AS $body$
BEGIN
  PERFORM pg_catalog.pg_advisory_xact_lock({DDL_LOCK});
END
$body$;

CREATE OR REPLACE FUNCTION {schema}.emit_ddl_end() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
  -- Temporary tables are made often and never published.
  IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands())
     AND NOT EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE schema_name IS DISTINCT FROM 'pg_temp') THEN
    RETURN;
  END IF;
  PERFORM {schema}.update_schemas(TG_TAG);
END
$body$;

CREATE OR REPLACE FUNCTION {schema}.emit_ddl_rewrite() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
  -- Bits: 2 a default computed per row, 4 a column of another type. Persistence and access method keep the values.
  IF pg_event_trigger_table_rewrite_reason() & 6 <> 0 THEN
    PERFORM pg_logical_emit_message(true, {prefix}, json_build_object(
      'type', 'rewrite', 'version', 1, 'oid', pg_event_trigger_table_rewrite_oid()::int8)::text);
  END IF;
END
$body$;
"#
    )
}

fn trigger_names(app: &App) -> [String; 3] {
    ["start", "end", "rewrite"].map(|kind| quote_identifier(&format!("{}_ddl_{kind}_{}", app.id, app.shard)))
}

pub(crate) fn triggers(app: &App) -> String {
    let schema = quote_identifier(&app.shard_schema());
    let [start, end, rewrite] = trigger_names(app);
    let tags = tags();
    format!(
        "DROP EVENT TRIGGER IF EXISTS {start}; DROP EVENT TRIGGER IF EXISTS {end}; DROP EVENT TRIGGER IF EXISTS {rewrite};
         CREATE EVENT TRIGGER {start} ON ddl_command_start WHEN TAG IN ({tags}) EXECUTE FUNCTION {schema}.emit_ddl_start();
         CREATE EVENT TRIGGER {end} ON ddl_command_end WHEN TAG IN ({tags}) EXECUTE FUNCTION {schema}.emit_ddl_end();
         CREATE EVENT TRIGGER {rewrite} ON table_rewrite EXECUTE FUNCTION {schema}.emit_ddl_rewrite();"
    )
}
