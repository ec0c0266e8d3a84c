//! Makes the shard what it must be, at each start: in one transaction, so that a failure leaves the database as it was.
//!
//! Whatever has our names is ours to replace, whoever made it; what is right already is not touched.

use rows::Version;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use crate::connect::quote_identifier;
use crate::error::ServerError;
use crate::options::{App, Options, parse_lsn};
use crate::tenant::{self, Former, Tenant};
use crate::{Error, Result, ddl, permissions, shape, shard};

/// What the set-up came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SetUp {
    /// Whether event triggers report schema changes.
    pub watching: bool,
    /// See [`crate::telling::Telling`].
    pub messages_until: Version,
}

/// Creates what is missing, replaces what is ours and different, and changes nothing that is right; all of it or nothing.
pub(crate) async fn ensure(client: &mut Client, options: &Options) -> Result<SetUp> {
    check_publications(client, &options.publications).await?;
    let publications = options.all_publications();
    let app = &options.app;
    let schema = quote_identifier(&app.shard_schema());
    let transaction = client.transaction().await.map_err(|e| Error::statement("begin the set-up of the shard", e))?;
    transaction
        .execute("SELECT pg_advisory_xact_lock(hashtext($1))", &[&format!("migrate-schema:{}", app.shard_schema())])
        .await
        .map_err(failed)?;
    let had_triggers = has_triggers(&transaction, app).await?;
    let former = match tenant::look(&transaction, app).await? {
        Tenant::Ours => None,
        Tenant::Reference(version) => {
            tenant::unless_at_work(&transaction, app).await?;
            Some((version, tenant::evict(&transaction, app).await?))
        }
    };
    let is_taken_over = former.is_some();
    let follows_another = is_taken_over || is_watched_by_another_release(&transaction, app).await?;
    if follows_another && !is_taken_over {
        // Its messages count up to here, so no transaction that wrote one may be open.
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&ddl::FORMER_LOCK]).await.map_err(failed)?;
        transaction.batch_execute(&ddl::removal(app)).await.map_err(failed)?;
    }
    transaction.batch_execute(&shard::tables(app)).await.map_err(failed)?;
    shape::check(&transaction, app).await?;
    transaction.batch_execute(&permissions::contents(app)).await.map_err(failed)?;
    if is_taken_over {
        transaction.batch_execute(&tenant::drop_other_publications(app)).await.map_err(failed)?;
    }
    transaction.batch_execute(&shard::metadata_publication(app)).await.map_err(failed)?;
    if options.publications.is_empty() {
        transaction.batch_execute(&shard::default_publication(app)).await.map_err(default_publication_failed)?;
    }
    let functions = ddl::functions(app, &publications);
    let known = transaction
        .query_opt(
            &format!("SELECT \"functions\", \"ddlDetection\", \"messagesUntil\" FROM {schema}.\"shardConfig\""),
            &[],
        )
        .await
        .map_err(failed)?;
    let found = fingerprint(&transaction, app, &functions).await?;
    let is_installed = known.as_ref().is_some_and(|row| row.get(1) && row.get::<_, Option<&str>>(0) == Some(&found));
    let is_told = !had_triggers && known.as_ref().is_some_and(|row| row.get(1));
    let watching = is_installed || install(&transaction, app, &functions, is_told).await?;
    let messages_until = match known.and_then(|row| row.get::<_, Option<String>>(2)) {
        Some(position) if !follows_another => position,
        _ => transaction.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.map_err(failed)?.get(0),
    };
    if options.publications.is_empty() {
        transaction.batch_execute(&format!("SELECT {schema}.publish_public()")).await.map_err(failed)?;
    }
    transaction
        .batch_execute(&format!(
            "SELECT {schema}.update_schemas(); SELECT {schema}.check_partitions();
             DELETE FROM {schema}.\"partitionFiles\" f WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = f.\"oid\")"
        ))
        .await
        .map_err(failed)?;
    let found = fingerprint(&transaction, app, &functions).await?;
    transaction
        .execute(
            &format!(
                "INSERT INTO {schema}.\"shardConfig\" (\"publications\", \"ddlDetection\", \"functions\", \"messagesUntil\")
                 VALUES ($1, $2, $3, $4)
                 ON CONFLICT (lock) DO UPDATE
                 SET \"publications\" = $1, \"ddlDetection\" = $2, \"functions\" = $3, \"messagesUntil\" = $4"
            ),
            &[&publications, &watching, &found, &messages_until],
        )
        .await
        .map_err(failed)?;
    if is_taken_over || !tenant::is_settled(&transaction, app).await? {
        tenant::settle(&transaction, app, former.as_ref().map(|(_, former)| former)).await?;
    }
    transaction.commit().await.map_err(failed)?;
    if let Some((version, Former { watch, replicas })) = &former {
        tracing::info!(
            schema = app.shard_schema(),
            schema_version = version,
            replicas,
            triggers = watch.is_some(),
            "took the shard over from Rocicorp's zero-cache: its triggers, functions and replicas are replaced; clients, mutations and permissions stay"
        );
    }
    use_unique_indexes_as_identity(client, options).await?;
    Ok(SetUp { watching, messages_until: parse_lsn(&messages_until)? })
}

/// Whether event triggers of the shard's functions are there, whoever made them.
async fn has_triggers(transaction: &Transaction<'_>, app: &App) -> Result<bool> {
    let row = transaction
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_event_trigger t JOIN pg_proc f ON f.oid = t.evtfoid
                            WHERE f.pronamespace = to_regnamespace(quote_ident($1)))",
            &[&app.shard_schema()],
        )
        .await
        .map_err(failed)?;
    Ok(row.get(0))
}

/// Replaces functions and triggers. Returns whether schema changes can be watched: also without triggers, if `is_told`, which
/// a person says in the table `shardConfig` whose migrations call `update_schemas()`.
async fn install(transaction: &Transaction<'_>, app: &App, functions: &str, is_told: bool) -> Result<bool> {
    transaction.batch_execute(&ddl::removal(app)).await.map_err(failed)?;
    transaction.batch_execute(functions).await.map_err(failed)?;
    transaction.batch_execute("SAVEPOINT triggers").await.map_err(failed)?;
    match transaction.batch_execute(&ddl::triggers(app)).await {
        Ok(()) => Ok(true),
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            transaction.batch_execute("ROLLBACK TO SAVEPOINT triggers").await.map_err(failed)?;
            if is_told {
                tracing::info!(
                    "this role may not create event triggers, and \"ddlDetection\" is set: a migration must end with SELECT {}.update_schemas()",
                    app.shard_schema()
                );
                return Ok(true);
            }
            tracing::warn!(
                "this role may not create event triggers, so a schema change upstream will rebuild the whole replica; use a superuser, or the role that your provider allows to create event triggers"
            );
            Ok(false)
        }
        Err(e) => Err(failed(e)),
    }
}

/// What functions and triggers are there, and from which text: equal if nothing needs to be replaced. Replacing them for no
/// reason could break a user's statement that is about to call them.
async fn fingerprint(transaction: &Transaction<'_>, app: &App, functions: &str) -> Result<String> {
    let wanted = functions.to_owned() + &ddl::triggers(app);
    let row = transaction
        .query_one(
            "SELECT md5($2) || md5(concat(
               (SELECT string_agg(concat(f.oid::regprocedure, f.prosrc, f.proconfig, f.prosecdef, f.proacl), ' ' ORDER BY f.oid)
                FROM pg_proc f WHERE f.pronamespace = to_regnamespace(quote_ident($1))),
               (SELECT string_agg(concat(t.evtname, t.evtevent, t.evtenabled, t.evttags, t.evtfoid), ' ' ORDER BY t.evtname)
                FROM pg_event_trigger t JOIN pg_proc f ON f.oid = t.evtfoid
                WHERE f.pronamespace = to_regnamespace(quote_ident($1)))))",
            &[&app.shard_schema(), &wanted],
        )
        .await
        .map_err(failed)?;
    Ok(row.get(0))
}

/// Whether functions of the same names, but of a former release or of the reference, are there.
async fn is_watched_by_another_release(transaction: &Transaction<'_>, app: &App) -> Result<bool> {
    let row = transaction
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_proc WHERE pronamespace = to_regnamespace(quote_ident($1))
                            AND proname = 'emit_ddl_end' AND prosrc NOT LIKE '%record_tables%')",
            &[&app.shard_schema()],
        )
        .await
        .map_err(failed)?;
    Ok(row.get(0))
}

/// The set-up makes the same statements each time: what Postgres finds wrong with one of them, it will find again.
fn failed(e: tokio_postgres::Error) -> Error {
    let repeats = e.code().is_some_and(|code| {
        matches!(code.code().get(..2), Some("0A" | "22" | "23" | "2B" | "2F" | "38" | "39" | "42" | "P0"))
    });
    match Error::statement("set the shard up", e) {
        Error::Transient { message, source, .. } if repeats => Error::Configuration {
            message: format!("{message}; nothing was changed: mend what it names, or use another ZERO_APP_ID"),
            source,
            entry: &fault::path::CONFIGURATION,
        },
        error => error,
    }
}

fn default_publication_failed(e: tokio_postgres::Error) -> Error {
    if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return Error::configuration(
            "this role may not publish every table of schema public (Postgres wants a superuser for that): create a publication for the tables to sync, and name it in ZERO_APP_PUBLICATIONS",
        );
    }
    Error::statement("publish schema public", e)
}

async fn check_publications(client: &Client, names: &[String]) -> Result<()> {
    for name in names {
        let first_is_letter = name.as_bytes().first().is_some_and(u8::is_ascii_alphabetic);
        if !first_is_letter || name.len() > 63 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(Error::configuration(format!(
                "the publication name '{name}' is not usable: it must start with a letter, hold letters, digits and _ only, and be at most 63 long"
            )));
        }
    }
    let found = client
        .query(
            "SELECT pubname::text, pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication WHERE pubname = ANY ($1)",
            &[&names],
        )
        .await
        .map_err(|e| Error::statement("read the publications", e))?;
    let missing: Vec<&str> =
        names.iter().filter(|n| !found.iter().any(|r| r.get::<_, &str>(0) == n.as_str())).map(String::as_str).collect();
    if !missing.is_empty() {
        return Err(Error::configuration(format!(
            "ZERO_APP_PUBLICATIONS names publications that do not exist: {}; create them with CREATE PUBLICATION",
            missing.join(", ")
        )));
    }
    if let Some(partial) = found.iter().find(|r| !r.get::<_, bool>(1)) {
        let name: &str = partial.get(0);
        return Err(Error::configuration(format!(
            "publication {name} leaves some operations out: run ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"
        )));
    }
    Ok(())
}

/// What an error means that ended the stream. A publication that is missing at the stream's position stays missing there, even
/// when it is back: what was committed meanwhile is not sent.
pub(crate) async fn stream_failed(client: &Client, options: &Options, error: &ServerError) -> Error {
    if error.code != SqlState::UNDEFINED_OBJECT.code() {
        return Error::response("continue replication", error);
    }
    match check_publications(client, &options.publications).await {
        Ok(()) => Error::reset(format!(
            "{}: it was dropped, and what was committed since then is not sent for it, even when it is back",
            error.message
        )),
        Err(missing) => missing,
    }
}

/// Tables without a primary key but with a unique index over NOT NULL columns: use that index, so that updates and deletes
/// are possible. A table of another owner is left as it is, and named.
async fn use_unique_indexes_as_identity(client: &Client, options: &Options) -> Result<()> {
    let shard = quote_identifier(&options.app.shard_schema());
    let doing = |e| Error::statement("look for tables without replica identity", e);
    let rows = client
        .query(
            &format!(
                "SELECT DISTINCT ON (c.oid) n.nspname::text, c.relname::text, x.relname::text
                 FROM {shard}.\"publishedTables\" p
                 JOIN pg_class c ON c.oid = p.\"oid\" AND c.relreplident = 'd'
                 JOIN pg_namespace n ON n.oid = c.relnamespace
                 JOIN pg_index i ON i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
                                 AND i.indexprs IS NULL AND i.indpred IS NULL
                 JOIN pg_class x ON x.oid = i.indexrelid
                 WHERE NOT EXISTS (SELECT FROM pg_index k WHERE k.indrelid = c.oid AND k.indisprimary)
                   AND NOT (p.\"spec\"::json ->> 'internal')::bool
                   AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[]) k(attnum)
                                   JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
                                   WHERE NOT a.attnotnull
                                      OR NOT EXISTS (SELECT FROM json_array_elements(p.\"spec\"::json -> 'columns') s
                                                     WHERE (s ->> 'attnum')::int2 = k.attnum))
                 ORDER BY c.oid, i.indnkeyatts, x.relname"
            ),
            &[],
        )
        .await
        .map_err(doing)?;
    for row in rows {
        let (schema, table, index): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let statement = format!(
            "ALTER TABLE {}.{} REPLICA IDENTITY USING INDEX {}",
            quote_identifier(schema),
            quote_identifier(table),
            quote_identifier(index)
        );
        match client.batch_execute(&statement).await {
            Ok(()) => {
                tracing::info!(schema, table, index, "table without primary key is identified by its unique index")
            }
            Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                tracing::warn!(schema, table, "this role may not set the replica identity; run as owner: {statement}");
            }
            Err(e) => return Err(Error::statement("set a replica identity", e)),
        }
    }
    Ok(())
}
