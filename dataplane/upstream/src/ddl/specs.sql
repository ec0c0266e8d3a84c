-- What is published, table by table. Looks at catalogs only: opening a table would wait for whoever alters it, so the views and
-- functions of Postgres that describe publications and partitions are not of use here.

CREATE FUNCTION {shard}.table_specs(candidates OID[])
RETURNS TABLE ("oid" OID, "spec" TEXT, "indexes" OID[], "partitions" OID[])
LANGUAGE plpgsql STABLE {settings} AS $body$
#variable_conflict use_column
BEGIN
RETURN QUERY
WITH publication AS (
  SELECT p.oid, p.puballtables, p.pubviaroot, coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false) AS generated
  FROM pg_publication p WHERE p.pubname IN ({publications})
), candidate AS (
  SELECT c.oid, n.nspname, c.relname, c.relkind, c.relreplident, c.relnatts, c.relnamespace,
         -- Shards of this and other applications: what their servers write must never come back to them as a change.
         (n.nspname ~ '^[a-z0-9_]+_[0-9]+/(cvr|cdc)$' OR to_regclass(format('%I."shardConfig"', n.nspname)) IS NOT NULL)
         AND NOT (n.nspname = {shard_name} AND c.relname IN ('clients', 'mutations')) AS internal
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid = ANY (candidates) AND c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= 16384
), exported AS (
  SELECT k.*, e.*
  FROM candidate k CROSS JOIN LATERAL (
    SELECT count(DISTINCT x.attnums) > 1 AS conflict, min(x.attnums) AS attnums,
           CASE WHEN bool_or(x.filter IS NULL) THEN NULL
                ELSE string_agg(DISTINCT x.filter, ' OR ' ORDER BY x.filter) END AS filter
    FROM publication p CROSS JOIN LATERAL (
      -- The table, and the partitioned tables that it is part of, as far as the publication names them.
      SELECT bool_or(a.relid = k.oid) AS itself, bool_or(a.relid <> k.oid) AS above,
             bool_or(a.relid = k.oid AND (p.puballtables OR s.oid IS NOT NULL)) AS wholly
      FROM (SELECT k.oid AS relid UNION SELECT relid FROM pg_partition_ancestors(k.oid)) a JOIN pg_class c ON c.oid = a.relid
      LEFT JOIN pg_publication_rel r ON r.prrelid = c.oid AND r.prpubid = p.oid
      LEFT JOIN pg_publication_namespace s ON s.pnnspid = c.relnamespace AND s.pnpubid = p.oid
      WHERE p.puballtables OR r.oid IS NOT NULL OR s.oid IS NOT NULL
    ) m
    LEFT JOIN pg_publication_rel r ON r.prrelid = k.oid AND r.prpubid = p.oid AND NOT m.wholly
    CROSS JOIN LATERAL (
      SELECT pg_get_expr(r.prqual, r.prrelid) AS filter, ARRAY(
        SELECT a.attnum FROM pg_attribute a
        WHERE a.attrelid = k.oid AND a.attnum > 0 AND NOT a.attisdropped
          AND CASE WHEN r.prattrs IS NULL THEN a.attgenerated = '' OR (p.generated AND a.attgenerated = 's')
                   ELSE a.attnum = ANY (r.prattrs::int2[])
                        AND (a.attgenerated = '' OR current_setting('server_version_num')::int >= 180000) END
        ORDER BY a.attnum) AS attnums
    ) x
    -- Through the root: the topmost table that is named, and nothing below it. Otherwise: what holds rows.
    WHERE CASE WHEN p.pubviaroot THEN m.itself AND NOT m.above ELSE k.relkind = 'r' AND (m.itself OR m.above) END
  ) e
  WHERE e.attnums IS NOT NULL
)
SELECT k.oid, json_build_object(
  'oid', k.oid::int8, 'schema', k.nspname, 'name', k.relname, 'identity', k.relreplident,
  'attributes', k.relnatts, 'conflict', k.conflict, 'internal', k.internal, 'filter', k.filter,
  'partitions', CASE WHEN k.relkind = 'p' THEN
    (SELECT coalesce(json_agg(c.oid::int8 ORDER BY c.oid), '[]'::json)
     FROM pg_class c WHERE c.oid = ANY (below.partitions) AND c.relkind <> 'p') END,
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
      'labels', CASE WHEN t.typtype = 'e' OR el.typtype = 'e' THEN
        (SELECT json_agg(json_build_array(l.oid::int8, l.enumlabel) ORDER BY l.oid)
         FROM pg_enum l WHERE l.enumtypid IN (t.oid, el.oid)) END
    ) ORDER BY a.attnum), '[]'::json)
    FROM pg_attribute a
    JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_type el ON el.oid = t.typelem
    WHERE a.attrelid = k.oid AND a.attnum = ANY (k.attnums)
  ),
  'indexes', (
    SELECT coalesce(json_agg(json_build_object(
      'name', x.relname, 'unique', i.indisunique AND i.indimmediate, 'primary', i.indisprimary,
      'identity', i.indisreplident,
      'columns', (
        SELECT json_agg(json_build_array(a.attname, (i.indoption[p.position - 1] & 1) = 1) ORDER BY p.position)
        FROM unnest(i.indkey::int2[]) WITH ORDINALITY p(attnum, position)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = p.attnum
        WHERE p.position <= i.indnkeyatts
      )
    ) ORDER BY x.relname), '[]'::json)
    FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
    WHERE i.indrelid = k.oid AND i.indisvalid AND i.indexprs IS NULL AND i.indpred IS NULL
      AND NOT EXISTS (SELECT FROM pg_constraint z WHERE z.conindid = i.indexrelid AND z.contype = 'x')
  ))::text,
  ARRAY(SELECT i.indexrelid FROM pg_index i WHERE i.indrelid = k.oid),
  below.partitions
FROM exported k
CROSS JOIN LATERAL (
  SELECT CASE WHEN k.relkind = 'p' THEN {shard}.descendants(ARRAY[k.oid]) ELSE '{}' END AS partitions
) below;
END
$body$;

CREATE FUNCTION {shard}.descendants(parents OID[]) RETURNS OID[]
LANGUAGE plpgsql STABLE {settings} AS $body$
BEGIN
  RETURN ARRAY(
    WITH RECURSIVE tree AS (
      SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = ANY (parents) AND NOT i.inhdetachpending
      UNION
      SELECT i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.inhrelid AND NOT i.inhdetachpending
    ) SELECT inhrelid FROM tree ORDER BY inhrelid);
END
$body$;

-- The tables whose description may change with one of `members`, which may be gone already.
CREATE FUNCTION {shard}.family(members OID[]) RETURNS OID[]
LANGUAGE plpgsql STABLE {settings} AS $body$
DECLARE
  line OID[] := members || ARRAY(
    SELECT a.relid::oid FROM unnest(members) m(relation) CROSS JOIN LATERAL pg_partition_ancestors(m.relation) a);
BEGIN
  RETURN ARRAY(
    SELECT unnest(line)
    UNION SELECT unnest({shard}.descendants(members))
    -- What a member was part of, or had as its parts, before.
    UNION SELECT k."oid" FROM {shard}."publishedTables" k WHERE k."partitions" && members OR k."indexes" && members
    UNION SELECT p.relation FROM {shard}."publishedTables" k CROSS JOIN LATERAL unnest(k."partitions") p(relation)
          WHERE k."oid" = ANY (line) AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = p.relation));
END
$body$;

-- All of it in one piece, for a copy.
CREATE FUNCTION {shard}.schema_specs() RETURNS TEXT
LANGUAGE sql STABLE {settings} AS $body$
  SELECT json_build_object('tables', coalesce(json_agg(t."spec"::json ORDER BY t."oid"), '[]'::json))::text
  FROM {shard}.table_specs(ARRAY(SELECT c.oid FROM pg_class c WHERE c.relkind IN ('r', 'p'))) t
$body$;
