//! What our statements depend on, set by ourselves: whatever a role, a database, a server or somebody else's session sets never
//! reaches them.
//!
//! Two ways, because a pooler in transaction mode keeps no settings for its clients and hands those that somebody made on to others:
//! on a connection to the server itself they are made once ([`prepare`]); where a pooler may stand between, each transaction makes
//! its own ([`isolated`], [`transaction`]).

use std::sync::LazyLock;

use tokio_postgres::{Client, Error, IsolationLevel, Transaction};

/// Before a connection without an answer is given up: what waits at the server must not outlive those who wait for it here.
const LOCK_TIMEOUT: &str = "30s";

/// What decides whether a statement does what it says.
const DEEDS: [(&str, &str); 7] = [
    ("statement_timeout", "0"),
    ("lock_timeout", LOCK_TIMEOUT),
    ("idle_in_transaction_session_timeout", "0"),
    // Postgres 17 and newer.
    ("transaction_timeout", "0"),
    ("search_path", "pg_catalog, pg_temp"),
    // Rows that a policy hides are an error, never missing.
    ("row_security", "off"),
    ("default_transaction_deferrable", "off"),
];

/// What decides how a session behaves between transactions, and how values are printed and read.
const STYLES: [(&str, &str); 13] = [
    ("idle_session_timeout", "0"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("xmlbinary", "base64"),
    ("standard_conforming_strings", "on"),
    ("quote_all_identifiers", "off"),
];

/// Whether a commit waits for the server's synchronous standbys. `local` is as durable as the server itself: it is for what is lost
/// together with the database that it describes.
const LOCAL_COMMITS: (&str, &str) = ("synchronous_commit", "local");

/// What is not known to the server is left out. One row, so that poolers and drivers see one small answer.
fn set<'a>(settings: impl IntoIterator<Item = &'a (&'a str, &'a str)>, is_local: bool) -> String {
    let values: Vec<String> = settings.into_iter().map(|(name, value)| format!("('{name}', '{value}')")).collect();
    format!(
        "SELECT count(pg_catalog.set_config(s.name, s.value, {is_local})) FROM (VALUES {}) s(name, value)
         WHERE pg_catalog.current_setting(s.name, true) IS NOT NULL",
        values.join(", ")
    )
}

/// For a connection that is ours alone: one batch of SQL, also for the replication protocol.
pub(crate) fn prepare() -> &'static str {
    static SQL: LazyLock<String> = LazyLock::new(|| {
        let all = set(DEEDS.iter().chain(&STYLES).chain([&LOCAL_COMMITS]), false);
        // Of use to nobody but superusers, whom it would keep from running triggers.
        let triggers = "SELECT pg_catalog.set_config('session_replication_role', 'origin', false)
             FROM pg_catalog.pg_roles WHERE rolname = current_user AND rolsuper
               AND pg_catalog.current_setting('session_replication_role') <> 'origin'";
        format!("{all}; {triggers}")
    });
    &SQL
}

fn locals(commits_locally: bool) -> &'static str {
    static SQL: LazyLock<[String; 2]> =
        LazyLock::new(|| [set(&DEEDS, true), set(DEEDS.iter().chain([&LOCAL_COMMITS]), true)]);
    &SQL[usize::from(commits_locally)]
}

/// SQL that begins a transaction in which only our own settings count.
#[must_use]
pub fn begin(commits_locally: bool) -> String {
    format!("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE; {}", locals(commits_locally))
}

/// The same for a transaction of several statements with parameters.
pub async fn transaction(client: &mut Client, commits_locally: bool) -> Result<Transaction<'_>, Error> {
    let plain = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted);
    let transaction = plain.read_only(false).deferrable(false).start().await?;
    transaction.batch_execute(locals(commits_locally)).await?;
    Ok(transaction)
}

/// Runs one statement in a transaction of its own, in one round trip. `statement` is one call of `client`, which is sent when it is
/// first polled.
pub async fn isolated<T>(
    client: &Client,
    commits_locally: bool,
    statement: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    // Sent in this order; the server takes the statement for the transaction's, and ends it with whatever came of that.
    let begin = begin(commits_locally);
    let (begun, done, ended) =
        tokio::join!(biased; client.batch_execute(&begin), statement, client.batch_execute("COMMIT"));
    begun?;
    let done = done?;
    ended?;
    Ok(done)
}
