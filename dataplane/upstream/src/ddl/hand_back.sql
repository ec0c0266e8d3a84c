-- The reference may come back at any time, and knows nothing of this server. But it notes its version in "versionHistory" before it
-- does anything else, and it is given no other chance to run beside the triggers above: they go, what it had is back, and no replica
-- of this server is continued, for what happens to the schema from here on is told to another.
CREATE OR REPLACE FUNCTION {shard}.hand_back() RETURNS TRIGGER
LANGUAGE plpgsql SECURITY DEFINER {settings} SET check_function_bodies = off AS $body$
DECLARE
  it RECORD;
  theirs TEXT := (SELECT "former" FROM {shard}."shardConfig");
BEGIN
  BEGIN
    -- For a process of this server that is still at work.
    PERFORM {shard}.emit_event(json_build_object('type', 'handedBack'));
  EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'the shard is not this server''s any more, and that cannot be told: %', SQLERRM;
  END;
  FOR it IN SELECT t.evtname FROM pg_event_trigger t JOIN pg_proc f ON f.oid = t.evtfoid
            WHERE f.pronamespace = to_regnamespace(quote_ident({shard_name})) LOOP
    EXECUTE format('DROP EVENT TRIGGER %I', it.evtname);
  END LOOP;
  IF EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
             WHERE p.pubname = {metadata_publication} AND r.prrelid = to_regclass('{shard}."schemaEvents"')) THEN
    EXECUTE format('ALTER PUBLICATION %I DROP TABLE {shard}."schemaEvents"', {metadata_publication});
  END IF;
  IF theirs IS NOT NULL THEN
    BEGIN
      FOR it IN SELECT f.oid::regprocedure AS called FROM pg_proc f
                WHERE f.pronamespace = to_regnamespace(quote_ident({shard_name}))
                  AND (f.proname LIKE 'emit\_%' OR f.proname IN ({names})) LOOP
        EXECUTE format('DROP FUNCTION %s', it.called);
      END LOOP;
      EXECUTE theirs;
    EXCEPTION WHEN OTHERS THEN
      RAISE WARNING 'what watched for schema changes before is not back: %', SQLERRM;
      theirs := NULL;
    END;
  END IF;
  -- Without triggers the reference looks at each table whether it is as it was, and copies everything anew if not.
  UPDATE {shard}."shardConfig"
  SET "ddlDetection" = "ddlDetection" AND theirs IS NOT NULL, "former" = NULL, "functions" = NULL, "messagesUntil" = NULL,
      "handedBack" = extract(epoch FROM clock_timestamp());
  -- Releases of it that name slots otherwise would keep them, and all that is written from here on with them.
  FOR it IN SELECT s.slot_name FROM {shard}."replicas" r JOIN pg_replication_slots s ON s.slot_name = r."slot"
            WHERE s.database = current_database() AND NOT s.active LOOP
    BEGIN
      PERFORM pg_drop_replication_slot(it.slot_name);
    EXCEPTION WHEN OTHERS THEN
      RAISE WARNING 'replication slot % stays: %', it.slot_name, SQLERRM;
    END;
  END LOOP;
  DELETE FROM {shard}."replicas";
  DELETE FROM {shard}."publishedTables";
  RETURN NULL;
END
$body$;
REVOKE ALL ON FUNCTION {shard}.hand_back() FROM PUBLIC;
