-- How a change gets into the stream. Events are rows of a published table: unlike logical messages, which any role may
-- emit, only the owner of that table can write them. They stand in the stream exactly where the change happened.

CREATE FUNCTION {shard}.emit_event(event JSON) RETURNS VOID
LANGUAGE plpgsql {settings} AS $body$
DECLARE
  written BIGINT;
BEGIN
  INSERT INTO {shard}."schemaEvents" ("event") VALUES (event::text) RETURNING "id" INTO written;
  -- Only its place in the stream is wanted.
  DELETE FROM {shard}."schemaEvents" WHERE "id" = written;
END
$body$;

-- Compares the candidates with what was published of them before, and emits the difference.
CREATE FUNCTION {shard}.record_tables(tag TEXT, candidates OID[]) RETURNS VOID
LANGUAGE plpgsql {settings} AS $body$
DECLARE
  changed JSON;
  gone JSON;
BEGIN
  WITH found_now AS MATERIALIZED (
    SELECT * FROM {shard}.table_specs(candidates)
  ), put AS (
    INSERT INTO {shard}."publishedTables" AS k ("oid", "spec", "indexes", "partitions")
    SELECT f."oid", f."spec", f."indexes", f."partitions" FROM found_now f
    -- Not by ON CONFLICT ... WHERE, which locks rows that stay as they are until the user's transaction ends.
    WHERE NOT EXISTS (
      SELECT FROM {shard}."publishedTables" k
      WHERE k."oid" = f."oid" AND k."spec" = f."spec" AND k."indexes" = f."indexes" AND k."partitions" = f."partitions")
    ON CONFLICT ("oid") DO UPDATE
      SET "spec" = EXCLUDED."spec", "indexes" = EXCLUDED."indexes", "partitions" = EXCLUDED."partitions"
    RETURNING k."oid", k."spec"
  ), removed AS (
    DELETE FROM {shard}."publishedTables" k
    WHERE k."oid" = ANY (candidates) AND NOT EXISTS (SELECT FROM found_now f WHERE f."oid" = k."oid")
    RETURNING k."oid"
  )
  SELECT (SELECT json_agg(p."spec"::json ORDER BY p."oid") FROM put p),
         (SELECT json_agg(r."oid"::int8 ORDER BY r."oid") FROM removed r)
  INTO changed, gone;
  IF changed IS NOT NULL OR gone IS NOT NULL THEN
    INSERT INTO {shard}."partitionFiles" ("oid", "file")
    SELECT c.oid, c.relfilenode FROM {shard}."publishedTables" k JOIN pg_class c ON c.oid = ANY (k."partitions")
    WHERE k."oid" = ANY (candidates) AND k."partitions" <> '{}' AND c.relkind = 'r'
    ON CONFLICT ("oid") DO NOTHING;
    PERFORM {shard}.emit_event(json_build_object(
      'type', 'tables', 'tag', tag, 'tables', coalesce(changed, '[]'::json), 'gone', coalesce(gone, '[]'::json)));
  END IF;
END
$body$;

-- A statement about one table holds a lock on that table until its transaction ends, which keeps statements about it in
-- order. What concerns whole schemas or publications must wait for all of those that are under way, and they for it.
CREATE FUNCTION {shard}.take_turn(tag TEXT, everywhere BOOL) RETURNS TEXT
LANGUAGE plpgsql {settings} AS $body$
DECLARE
  turn CONSTANT BIGINT := hashtextextended({shard_name} || ' schema changes', 0);
BEGIN
  IF everywhere THEN
    PERFORM pg_advisory_xact_lock(turn);
  ELSIF NOT pg_try_advisory_xact_lock_shared(turn) THEN
    PERFORM pg_advisory_xact_lock_shared(turn);
    -- Rows that the statement wrote before it had to wait may be missing in the stream: no statement that makes an empty table.
    RETURN 'ALTER PUBLICATION';
  END IF;
  RETURN tag;
END
$body$;

-- Compares all tables: for changes that no trigger saw.
CREATE FUNCTION {shard}.update_schemas() RETURNS VOID
LANGUAGE plpgsql SECURITY DEFINER {settings} AS $body$
DECLARE
  tables OID[];
BEGIN
  FOR attempt IN 1..2 LOOP
    tables := ARRAY(SELECT c.oid FROM pg_class c WHERE c.relkind IN ('r', 'p')
                    UNION SELECT k."oid" FROM {shard}."publishedTables" k);
    IF attempt = 2 THEN
      PERFORM {shard}.record_tables('SNAPSHOT', tables);
    ELSIF EXISTS (SELECT t."oid", t."spec" FROM {shard}.table_specs(tables) t
                  EXCEPT ALL SELECT k."oid", k."spec" FROM {shard}."publishedTables" k)
       OR EXISTS (SELECT k."oid", k."spec" FROM {shard}."publishedTables" k
                  EXCEPT ALL SELECT t."oid", t."spec" FROM {shard}.table_specs(tables) t) THEN
      PERFORM {shard}.take_turn('SNAPSHOT', true);
    ELSE
      EXIT;
    END IF;
  END LOOP;
END
$body$;

-- Postgres says nothing when one part of a table that is published as a whole is truncated, and no trigger of ours may stand on
-- others' tables. But the part gets a new file then (as it does by VACUUM FULL, after which it is read for nothing).
CREATE FUNCTION {shard}.check_partitions() RETURNS VOID
LANGUAGE plpgsql SECURITY DEFINER {settings} AS $body$
DECLARE
  replaced JSON;
BEGIN
  WITH part AS (
    SELECT k."oid" AS root, c.oid, c.relfilenode FROM {shard}."publishedTables" k JOIN pg_class c ON c.oid = ANY (k."partitions")
    WHERE k."partitions" <> '{}' AND c.relkind = 'r'
  ), known AS (
    UPDATE {shard}."partitionFiles" f SET "file" = p.relfilenode FROM part p
    WHERE p.oid = f."oid" AND p.relfilenode <> f."file"
    RETURNING p.root
  )
  SELECT json_agg(DISTINCT k.root::int8) INTO replaced FROM known k;
  IF replaced IS NOT NULL THEN
    PERFORM {shard}.emit_event(json_build_object('type', 'rewrite', 'tables', replaced));
  END IF;
END
$body$;

-- Says that a change could not be recorded. Must not break the user's statement.
CREATE FUNCTION {shard}.emit_failure(tag TEXT, message TEXT) RETURNS VOID
LANGUAGE plpgsql {settings} AS $body$
BEGIN
  PERFORM {shard}.emit_event(json_build_object('type', 'error', 'tag', tag, 'message', message));
  RAISE WARNING 'cannot record the schema change for replication: %', message;
EXCEPTION WHEN OTHERS THEN
  RAISE WARNING 'cannot record the schema change for replication: %; nor that: %', message, SQLERRM;
END
$body$;

CREATE FUNCTION {shard}.emit_ddl_end() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER {settings} AS $body$
DECLARE
  everywhere BOOL;
  permanent BOOL;
  turn TEXT;
  touched OID[];
BEGIN
  SELECT bool_or(
           c.classid = 'pg_namespace'::regclass AND tg_tag = 'ALTER SCHEMA'
           OR EXISTS (SELECT FROM pg_publication p LEFT JOIN pg_publication_namespace s ON s.pnpubid = p.oid
                      WHERE p.pubname IN ({publications})
                        AND (c.classid, c.objid) IN (('pg_publication'::regclass, p.oid), ('pg_publication_namespace'::regclass, s.oid)))),
         -- A comment is a hint from where event triggers do not fire for publications.
         bool_or(c.schema_name IS DISTINCT FROM 'pg_temp' AND (tg_tag <> 'COMMENT' OR c.classid = 'pg_publication'::regclass))
  INTO everywhere, permanent FROM pg_event_trigger_ddl_commands() c;
  -- Temporary objects are made often and never published.
  IF permanent IS NOT TRUE THEN
    RETURN;
  END IF;
  turn := {shard}.take_turn(tg_tag, everywhere);
  IF tg_tag IN ('CREATE SCHEMA', 'ALTER SCHEMA') THEN
    PERFORM {shard}.publish_public();
  END IF;
  touched := ARRAY(
    WITH command AS (
      SELECT c.classid, c.objid FROM pg_event_trigger_ddl_commands() c WHERE c.schema_name IS DISTINCT FROM 'pg_temp'
    ), publication AS (
      SELECT p.oid FROM pg_publication p WHERE p.pubname IN ({publications})
    )
    SELECT c.objid FROM command c WHERE c.classid = 'pg_class'::regclass
    UNION
    SELECT i.indrelid FROM command c JOIN pg_index i ON c.classid = 'pg_class'::regclass AND i.indexrelid = c.objid
    UNION
    SELECT k.conrelid FROM command c JOIN pg_constraint k ON c.classid = 'pg_constraint'::regclass AND k.oid = c.objid
    UNION
    SELECT d.objid FROM command c
    JOIN pg_type t ON c.classid = 'pg_type'::regclass AND t.oid = c.objid
    JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (t.oid, t.typarray)
                     AND d.classid = 'pg_class'::regclass AND d.objsubid > 0
    UNION
    SELECT r.prrelid FROM command c
    JOIN pg_publication_rel r ON c.classid = 'pg_publication_rel'::regclass AND r.oid = c.objid
    JOIN publication p ON p.oid = r.prpubid
    UNION
    SELECT t.oid FROM command c
    JOIN pg_publication_namespace s ON c.classid = 'pg_publication_namespace'::regclass AND s.oid = c.objid
    JOIN publication p ON p.oid = s.pnpubid
    JOIN pg_class t ON t.relnamespace = s.pnnspid AND t.relkind IN ('r', 'p')
    UNION
    SELECT t.oid FROM command c
    JOIN publication p ON c.classid = 'pg_publication'::regclass AND p.oid = c.objid
    JOIN pg_class t ON t.relkind IN ('r', 'p')
    UNION
    SELECT t.oid FROM command c
    JOIN pg_class t ON c.classid = 'pg_namespace'::regclass AND t.relnamespace = c.objid AND t.relkind IN ('r', 'p')
  );
  IF touched <> '{}' THEN
    PERFORM {shard}.record_tables(turn, {shard}.family(touched));
  END IF;
EXCEPTION
  WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
    RAISE;
  WHEN OTHERS THEN
    PERFORM {shard}.emit_failure(tg_tag, SQLERRM);
END
$body$;

CREATE FUNCTION {shard}.emit_ddl_drop() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER {settings} AS $body$
DECLARE
  everywhere BOOL;
  permanent BOOL;
  turn TEXT;
  touched OID[];
BEGIN
  SELECT bool_or(o.classid = 'pg_publication'::regclass AND o.address_names[1] IN ({publications})
                 OR o.classid = 'pg_publication_namespace'::regclass AND o.address_args[1] IN ({publications})),
         bool_or(o.classid IN ('pg_class'::regclass, 'pg_publication_rel'::regclass))
  INTO everywhere, permanent FROM pg_event_trigger_dropped_objects() o WHERE NOT o.is_temporary;
  IF (everywhere OR permanent) IS NOT TRUE THEN
    RETURN;
  END IF;
  turn := {shard}.take_turn(tg_tag, everywhere);
  touched := ARRAY(
    WITH dropped AS (
      SELECT * FROM pg_event_trigger_dropped_objects() o WHERE NOT o.is_temporary
    ), unpublished AS (
      SELECT d.* FROM dropped d WHERE d.address_args[1] IN ({publications})
    )
    SELECT d.objid FROM dropped d WHERE d.classid = 'pg_class'::regclass
    UNION
    SELECT to_regclass(format('%I.%I', d.address_names[1], d.address_names[2]))::oid FROM unpublished d
    WHERE d.classid = 'pg_publication_rel'::regclass
    UNION
    SELECT c.oid FROM unpublished d
    JOIN pg_namespace n ON d.classid = 'pg_publication_namespace'::regclass AND n.nspname = d.address_names[1]
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
    UNION
    SELECT k."oid" FROM dropped d JOIN {shard}."publishedTables" k ON d.classid = 'pg_publication'::regclass
    WHERE d.address_names[1] IN ({publications})
  );
  PERFORM {shard}.record_tables(turn, {shard}.family(touched));
EXCEPTION
  WHEN lock_not_available OR deadlock_detected OR serialization_failure THEN
    RAISE;
  WHEN OTHERS THEN
    PERFORM {shard}.emit_failure(tg_tag, SQLERRM);
END
$body$;

CREATE FUNCTION {shard}.emit_ddl_rewrite() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER {settings} AS $body$
DECLARE
  rewritten OID := pg_event_trigger_table_rewrite_oid();
  published JSON;
BEGIN
  -- Bits: 2 a default computed per row, 4 a column of another type. Persistence and access method keep the values.
  IF pg_event_trigger_table_rewrite_reason() & 6 <> 0 THEN
    SELECT json_agg(k."oid"::int8) INTO published FROM {shard}."publishedTables" k
    WHERE k."oid" IN (SELECT rewritten UNION SELECT a.relid FROM pg_partition_ancestors(rewritten) a);
    IF published IS NOT NULL THEN
      PERFORM {shard}.emit_event(json_build_object('type', 'rewrite', 'tables', published));
    END IF;
  END IF;
EXCEPTION WHEN OTHERS THEN
  PERFORM {shard}.emit_failure(tg_tag, SQLERRM);
END
$body$;

-- The default publication loses schema public with the schema; a schema of this name that is made anew is published as before.
CREATE FUNCTION {shard}.publish_public() RETURNS VOID
LANGUAGE plpgsql SECURITY DEFINER {settings} AS $body$
BEGIN
  IF EXISTS (SELECT FROM pg_publication p JOIN pg_namespace n ON n.nspname = 'public'
             WHERE p.pubname = {default_publication} AND p.pubname IN ({publications})
               AND NOT EXISTS (SELECT FROM pg_publication_namespace s WHERE s.pnpubid = p.oid AND s.pnnspid = n.oid)) THEN
    EXECUTE format('ALTER PUBLICATION %I ADD TABLES IN SCHEMA public', {default_publication});
  END IF;
EXCEPTION WHEN insufficient_privilege THEN
  RAISE WARNING 'schema public is not replicated: %; run as a superuser: ALTER PUBLICATION % ADD TABLES IN SCHEMA public',
    SQLERRM, quote_ident({default_publication});
END
$body$;

-- Whoever calls these decides what is emitted.
REVOKE ALL ON FUNCTION {shard}.emit_event(JSON), {shard}.record_tables(TEXT, OID[]), {shard}.take_turn(TEXT, BOOL),
  {shard}.emit_failure(TEXT, TEXT), {shard}.publish_public(), {shard}.check_partitions() FROM PUBLIC;
