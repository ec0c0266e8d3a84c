//! The table of all settings. It is the only place where a variable's name, type, default and meaning are written: flags,
//! `--help`, parsing and `CONFIG.md` are derived from it.

use super::option::{Setting, boolean, choice, list, number, text};

const LEVELS: &[&str] = &["debug", "info", "warn", "error"];

const OTLP: &str = "OTLP export (scrape /metrics instead)";
const EVENTS: &str = "status events";
const SHADOW: &str = "rehearsals of the initial sync";
const ENGINE: &str = "the query engine here has no such step";
const STREAM: &str = "the change stream here needs no such tuning";
const LITESTREAM: &str = "no litestream process is started";
const FLOW: &str = "a slow view-syncer reads from the change log and holds up nobody";
const CHANGE_LOG: &str = "the change log is written over one connection";
const PURGE: &str = "forgotten client groups are purged hourly, all at once";
const SCHEMA: &str = "clients bring their schema, and permissions are deployed to the database";
const PLATFORM: &str = "only labels the original's telemetry, which is never sent";

/// All settings by section, in the order of `CONFIG.md`.
pub const SECTIONS: &[(&str, &[Setting])] = &[
    ("Upstream database", UPSTREAM),
    ("Mutate and query API servers", API_SERVERS),
    ("Client view records (CVR) database", CVR),
    ("Change database", CHANGE),
    ("Query execution", QUERIES),
    ("Replica", REPLICA),
    ("Application", APPLICATION),
    ("Authentication", AUTH),
    ("Network and life cycle", NETWORK),
    ("Logging", LOGGING),
    ("Change streamer", CHANGE_STREAMER),
    ("Initial sync", INITIAL_SYNC),
    ("Backup", LITESTREAM_SETTINGS),
    ("Status events", EVENT_SETTINGS),
    ("Old spellings", OLD_SPELLINGS),
    ("Settings of older versions", OLDER),
    ("Other environment variables", ENVIRONMENT),
];

const UPSTREAM: &[Setting] = &[
    text("ZERO_UPSTREAM_DB", "URL of the authoritative Postgres database; a direct connection, not a pooler")
        .required()
        .secret(),
    choice("ZERO_UPSTREAM_TYPE", &["pg", "custom"], "kind of upstream; only `pg` is served").default("pg").hidden(),
    number("ZERO_UPSTREAM_MAX_CONNS", "most connections to upstream for CRUD mutations; opened when they are needed")
        .default("20"),
    number("ZERO_UPSTREAM_MAX_CONNS_PER_WORKER", "share of one worker process").internal(),
    boolean(
        "ZERO_UPSTREAM_PG_REPLICATION_SLOT_FAILOVER",
        "create the replication slot with failover (Postgres 17 and later)",
    )
    .default("false"),
    number(
        "ZERO_UPSTREAM_PG_STREAM_INBOUND_TIMEOUT_MS",
        "silence after which the replication stream is torn down; 0 is never",
    )
    .derived("twice the server's `wal_sender_timeout`, else two minutes"),
];

const API_SERVERS: &[Setting] = &[
    list(
        "ZERO_MUTATE_URL",
        "allowed URLs of the API server's mutate endpoint, as URL patterns; the first is the default",
    ),
    text("ZERO_MUTATE_API_KEY", "sent to the mutate endpoint as `X-Api-Key`").secret(),
    boolean("ZERO_MUTATE_FORWARD_COOKIES", "forward the cookies of the WebSocket upgrade").default("false"),
    list("ZERO_MUTATE_ALLOWED_CLIENT_HEADERS", "names of headers given by the client that are forwarded"),
    list("ZERO_MUTATE_ALLOWED_REQUEST_HEADERS", "names of headers of the WebSocket upgrade that are forwarded"),
    list(
        "ZERO_QUERY_URL",
        "allowed URLs of the API server's query endpoint, as URL patterns; the first is the default",
    ),
    text("ZERO_QUERY_API_KEY", "sent to the query endpoint as `X-Api-Key`").secret(),
    boolean("ZERO_QUERY_FORWARD_COOKIES", "forward the cookies of the WebSocket upgrade").default("false"),
    list("ZERO_QUERY_ALLOWED_CLIENT_HEADERS", "names of headers given by the client that are forwarded"),
    list("ZERO_QUERY_ALLOWED_REQUEST_HEADERS", "names of headers of the WebSocket upgrade that are forwarded"),
    boolean("ZERO_ENABLE_CRUD_MUTATIONS", "accept CRUD mutations and write them upstream").default("true"),
];

const CVR: &[Setting] = &[
    text("ZERO_CVR_DB", "URL of the Postgres database that holds client view records")
        .derived("`ZERO_UPSTREAM_DB`")
        .secret(),
    number("ZERO_CVR_MAX_CONNS", "most connections to the CVR database; two are used, or one in turns").default("30"),
    number("ZERO_CVR_MAX_CONNS_PER_WORKER", "share of one worker process").internal(),
    number(
        "ZERO_CVR_GARBAGE_COLLECTION_INACTIVITY_THRESHOLD_HOURS",
        "a client group unused for so long may be forgotten",
    )
    .default("48"),
    number(
        "ZERO_CVR_GARBAGE_COLLECTION_INITIAL_INTERVAL_SECONDS",
        "first interval between purges of forgotten client groups",
    )
    .default("60")
    .inert(PURGE),
    number(
        "ZERO_CVR_GARBAGE_COLLECTION_INITIAL_BATCH_SIZE",
        "client groups removed by the first purge; 0 is never purge",
    )
    .default("25")
    .inert(PURGE),
];

const CHANGE: &[Setting] = &[
    text("ZERO_CHANGE_DB", "URL of the Postgres database that holds the recent replication log")
        .derived("`ZERO_UPSTREAM_DB`")
        .secret(),
    number("ZERO_CHANGE_MAX_CONNS", "size of the change database pool").default("5").inert(CHANGE_LOG),
    number("ZERO_CHANGE_STATEMENT_TIMEOUT_MS", "wait for the answer to one statement")
        .default("20000")
        .hidden()
        .inert(STREAM),
    number("ZERO_CHANGE_LOG_BATCH_SIZE", "change-log rows per insert").default("2000").hidden().inert(STREAM),
];

const QUERIES: &[Setting] = &[
    boolean(
        "ZERO_ALLOW_LEGACY_QUERIES",
        "serve queries that clients define themselves, with the rows that deployed permissions allow; if false, they fail",
    )
    .default("true"),
    boolean("ZERO_QUERY_HYDRATION_STATS", "count and log the rows considered by slow hydrations")
        .default("false")
        .inert(ENGINE),
    boolean("ZERO_SQLITE_CORRUPTION_CHECKS", "check the replica file when corruption is seen")
        .default("false")
        .hidden()
        .inert("a corrupt replica is always reported"),
    boolean("ZERO_ENABLE_QUERY_PLANNER", "plan joins by cost").default("true").inert(ENGINE),
    boolean("ZERO_ENABLE_QUERY_COVERING", "log queries whose results are covered by others")
        .default("true")
        .inert("equal queries always share one materialisation"),
    number("ZERO_YIELD_THRESHOLD_MS", "time slice of query work before other work gets a turn")
        .default("10")
        .inert("query work has threads of its own and holds up no socket"),
    text("ZERO_STORAGE_DB_TMP_DIR", "directory of the databases that hold operator state")
        .derived("the system's temporary directory")
        .inert("operator state is kept in memory"),
    number("ZERO_TARGET_CLIENT_ROW_COUNT", "no effect in the original either").default("20000").hidden().inert(ENGINE),
];

const REPLICA: &[Setting] = &[
    text("ZERO_REPLICA_FILE", "path of the SQLite replica; its folder is made if it is missing, and a replica of the original server or of another release is moved aside").default("zero.db"),
    boolean(
        "ZERO_REPLICA_REMOVE_SIBLINGS",
        "when ready, remove folders beside the replica's own that hold only a replica of the same name and application, such as `/data/v1` beside `/data/v2`",
    )
    .default("false"),
    number("ZERO_REPLICA_VACUUM_INTERVAL_HOURS", "compact the replica at start when the last time is so long ago")
        .derived("never")
        .not_built("compaction of the replica file"),
    boolean("ZERO_AUTO_RESET", "wipe the replica and sync anew when replication cannot continue; `false` also refuses a replica of the original server or of another release").default("true"),
];

const APPLICATION: &[Setting] = &[
    text("ZERO_APP_ID", "isolation key; names schemas, publications and slots upstream").default("zero"),
    list("ZERO_APP_PUBLICATIONS", "Postgres publications to replicate; changing the set syncs anew")
        .derived("one over all tables of schema `public`"),
    number("ZERO_SHARD_NUM", "shard number").default("0").hidden(),
    text("ZERO_TASK_ID", "unique name of this instance").derived("random"),
    text("ZERO_SERVER_VERSION", "version shown in logs and metrics").derived("the version of this build"),
];

const AUTH: &[Setting] = &[
    text("ZERO_AUTH_JWK", "public JWK that signs client tokens (legacy)").hidden(),
    text("ZERO_AUTH_JWKS_URL", "URL of a JWK set that signs client tokens (legacy)").hidden(),
    text("ZERO_AUTH_SECRET", "symmetric key that signs client tokens (legacy)").secret().hidden(),
    text("ZERO_AUTH_ISSUER", "required `iss` of client tokens").hidden(),
    text("ZERO_AUTH_AUDIENCE", "required `aud` of client tokens").hidden(),
    number(
        "ZERO_AUTH_REVALIDATE_INTERVAL_SECONDS",
        "period of asking the query endpoint whether a connection is still allowed",
    )
    .default("300"),
    number("ZERO_AUTH_RETRANSFORM_INTERVAL_SECONDS", "period of transforming the queries of a client group anew")
        .default("300"),
];

const NETWORK: &[Setting] = &[
    number("ZERO_PORT", "HTTP and WebSocket port for clients").default("4848"),
    number(
        "ZERO_ADMIN_PORT",
        "port of its own for `/metrics` and `/statz`, on every node and from its start, with the probes as well; the port for clients then has neither, so that whoever reaches it from outside does not either, while the port of the change stream keeps them. Not of the original",
    )
    .derived("none: `/metrics` and `/statz` are on the port for clients"),
    list(
        "ZERO_ALLOWED_ORIGINS",
        "origins of web pages that may connect, such as `https://app.example.com`, or `https://*.example.com` for all names below it; whoever is no browser is not concerned. Not of the original",
    )
    .derived("all"),
    number(
        "ZERO_KEEPALIVE_TIMEOUT_MS",
        "drain and exit when calls to `/keepalive` stop for so long after having started",
    )
    .derived("off; 20000 when `ECS_CONTAINER_METADATA_URI_V4` is set"),
    number(
        "ZERO_SHUTDOWN_GRACE_SECONDS",
        "from SIGTERM to the end of the process at most; what cannot be stored by then is given up and loses nothing. Not of the original",
    )
    .default("90"),
    number(
        "ZERO_NUM_SYNC_WORKERS",
        "number of threads that run queries from scratch; 0 makes the node a replication-manager",
    )
    .derived("processors - 1, at least 1"),
    text("ZERO_ADMIN_PASSWORD", "password of `/statz` and the inspector; required unless `NODE_ENV=development`")
        .secret(),
    text(
        "ZERO_ADMIN_PASSWORD_PREVIOUS",
        "former admin password; view-syncers whose token was made from it are accepted as well",
    )
    .secret(),
    boolean("ZERO_LAZY_STARTUP", "start only when the first client connects")
        .default("false")
        .inert("the server is ready as soon as the replica is"),
    number("ZERO_PER_USER_MUTATION_LIMIT_MAX", "CRUD mutations that one client group may make in a window")
        .derived("no limit"),
    number("ZERO_PER_USER_MUTATION_LIMIT_WINDOW_MS", "length of that window, which slides").default("60000"),
    boolean("ZERO_WEBSOCKET_COMPRESSION", "compress WebSocket messages")
        .default("false")
        .not_built("WebSocket compression"),
    text("ZERO_WEBSOCKET_COMPRESSION_OPTIONS", "options of the compression, as JSON")
        .not_built("WebSocket compression"),
    number(
        "ZERO_WEBSOCKET_MAX_PAYLOAD_BYTES",
        "largest accepted client message; a larger one closes the socket with 1009",
    )
    .default("10485760"),
    number(
        "ZERO_WEBSOCKET_MAX_UNVERIFIED_PER_ADDRESS",
        "sockets from one IP address (of version 6: from one /64 network) whose credentials are yet to be judged; further ones are answered 503. Clients behind a proxy all have the proxy's address; 0 is no limit. Not of the original",
    )
    .default("10000"),
    boolean("ZERO_ENABLE_TELEMETRY", "anonymous usage metrics").default("true").inert("no telemetry is ever sent"),
];

const LOGGING: &[Setting] = &[
    choice("ZERO_LOG_LEVEL", LEVELS, "least severe level that is logged").default("info"),
    choice("ZERO_LOG_FORMAT", &["text", "json"], "format of log lines").default("text"),
    number("ZERO_LOG_SLOW_ROW_THRESHOLD", "milliseconds after which fetching one row is called slow")
        .default("2")
        .inert(ENGINE),
    number("ZERO_LOG_SLOW_HYDRATE_THRESHOLD", "milliseconds after which a hydration is called slow")
        .default("100")
        .not_built("logs of slow hydrations; see `zero_hydration_seconds`"),
    number("ZERO_LOG_IVM_SAMPLING", "one of so many requests to the query engine is sampled")
        .default("5000")
        .inert(ENGINE),
];

const CHANGE_STREAMER: &[Setting] = &[
    text("ZERO_CHANGE_STREAMER_URI", "address of the replication-manager; makes the node a view-syncer"),
    choice(
        "ZERO_CHANGE_STREAMER_MODE",
        &["dedicated", "discover"],
        "`discover` reads the replication-manager's address from the change database and makes the node a view-syncer",
    )
    .default("dedicated"),
    text(
        "ZERO_CHANGE_STREAMER_TOKEN",
        "secret that view-syncers show to the replication-manager; the same on all nodes",
    )
    .derived("made from `ZERO_ADMIN_PASSWORD`")
    .secret(),
    text(
        "ZERO_CHANGE_STREAMER_TOKEN_PREVIOUS",
        "secret that is accepted as well while nodes are restarted with a new one, the replication-manager first",
    )
    .secret(),
    number("ZERO_CHANGE_STREAMER_PORT", "port of the change stream").derived("`ZERO_PORT` + 1"),
    text("ZERO_CHANGE_STREAMER_ADDRESS", "address registered in the change database")
        .derived("this host's address as the change database sees it")
        .hidden(),
    choice("ZERO_CHANGE_STREAMER_PROTOCOL", &["ws", "wss"], "scheme registered in the change database")
        .derived("`wss` if `ZERO_CHANGE_STREAMER_TLS_CERT_FILE` is given, else `ws`")
        .hidden(),
    text(
        "ZERO_CHANGE_STREAMER_TLS_CERT_FILE",
        "PEM file of the certificate, with its chain, that the port of the change stream shows: the port speaks TLS only then; read again when it changes. Register a name that the certificate is for (`ZERO_CHANGE_STREAMER_ADDRESS`), as the default is an IP address",
    ),
    text(
        "ZERO_CHANGE_STREAMER_TLS_KEY_FILE",
        "PEM file of that certificate's private key, not encrypted; given together with the certificate",
    ),
    text(
        "ZERO_CHANGE_STREAMER_TLS_CA_FILE",
        "PEM file of the authorities that are trusted, instead of the system's, when connecting to a `wss` or `https` address of the change stream; read at each connect",
    ),
    list("ZERO_CHANGE_STREAMER_DISCOVERY_INTERFACE_PREFERENCES", "preferred network interfaces, by name prefix")
        .default("eth,en")
        .hidden()
        .inert("the interface that leads to the change database is taken"),
    number(
        "ZERO_CHANGE_STREAMER_STARTUP_DELAY_MS",
        "wait before the stream is taken over from an instance that still runs; a view-syncer that connects ends it",
    )
    .default("15000"),
    boolean(
        "ZERO_CHANGE_STREAMER_STANDBY",
        "while another process replicates, stand by for as long as it is at work: view-syncers are sent to it, and it is relieved when it resigns or does not answer. Not of the original; for nodes that replicate",
    )
    .default("false"),
    number("ZERO_CHANGE_STREAMER_BACK_PRESSURE_LIMIT_HEAP_PROPORTION", "share of the heap used to buffer the stream")
        .default("0.04")
        .inert(STREAM),
    number(
        "ZERO_CHANGE_STREAMER_FLOW_CONTROL_CONSENSUS_TIMEOUT_PROPORTION",
        "extra wait for slow subscribers, relative",
    )
    .default("2.0")
    .inert(FLOW),
    number(
        "ZERO_CHANGE_STREAMER_FLOW_CONTROL_SLOW_SUBSCRIBER_GRACE_PERIOD_SECONDS",
        "view-syncers that make no progress are cut off after so long",
    )
    .default("30"),
    number("ZERO_CHANGE_STREAMER_FLOW_CONTROL_CONSENSUS_PADDING_SECONDS", "extra wait for slow subscribers, absolute")
        .default("1")
        .inert(FLOW),
    choice(
        "ZERO_CHANGE_STREAMER_SQLITE_CHANGE_LOG_MODE",
        &["off", "write", "compare", "serve"],
        "stage of an internal migration",
    )
    .default("off")
    .hidden()
    .inert(STREAM),
    number("ZERO_CHANGE_STREAMER_SQLITE_CHANGE_LOG_READ_PERCENT", "same").default("0").hidden().inert(STREAM),
    number("ZERO_CHANGE_STREAMER_SQLITE_CHANGE_LOG_COLD_READ_PERCENT", "same").default("0").hidden().inert(STREAM),
    number("ZERO_CHANGE_STREAMER_SQLITE_CHANGE_LOG_COMPARE_PERCENT", "same").default("1").hidden().inert(STREAM),
    number("ZERO_CHANGE_STREAMER_SQLITE_CHANGE_LOG_RETENTION_MS", "same").default("60000").hidden().inert(STREAM),
    number("ZERO_CHANGE_STREAMER_SQLITE_CHANGE_LOG_READ_BATCH_ROWS", "same").default("1000").hidden().inert(STREAM),
    number("ZERO_CHANGE_STREAMER_SQLITE_CHANGE_LOG_PURGE_BATCH_ROWS", "same").default("1000").hidden().inert(STREAM),
    number("ZERO_CHANGE_STREAMER_SQLITE_CHANGE_LOG_BARRIER_TIMEOUT_MS", "same")
        .default("300000")
        .hidden()
        .inert(STREAM),
    number("ZERO_REPLICATION_LAG_REPORT_INTERVAL_MS", "period of the lag probes written upstream; 0 is never")
        .default("30000")
        .not_built("lag probes"),
];

const INITIAL_SYNC: &[Setting] = &[
    number("ZERO_INITIAL_SYNC_TABLE_COPY_WORKERS", "tables copied at the same time").default("5"),
    boolean("ZERO_INITIAL_SYNC_PROFILE_COPY", "profile the copy")
        .default("false")
        .hidden()
        .inert("attach a profiler instead"),
    boolean("ZERO_INITIAL_SYNC_TEXT_COPY", "copy in text instead of binary format")
        .default("false")
        .inert("one format is always used"),
    boolean("ZERO_SHADOW_SYNC_ENABLED", "rehearse the initial sync from time to time")
        .default("false")
        .not_built(SHADOW),
    number("ZERO_SHADOW_SYNC_INTERVAL_HOURS", "period of the rehearsal").default("12").not_built(SHADOW),
    number("ZERO_SHADOW_SYNC_SAMPLE_RATE", "share of rows rehearsed").default("0.1").not_built(SHADOW),
    number("ZERO_SHADOW_SYNC_MAX_ROWS_PER_TABLE", "most rows rehearsed of one table")
        .default("10000")
        .not_built(SHADOW),
];

const LITESTREAM_SETTINGS: &[Setting] = &[
    text(
        "ZERO_LITESTREAM_BACKUP_URL",
        "destination of the replica's backup, `s3://bucket/path`; view-syncers learn it from the replication-manager",
    ),
    text("ZERO_LITESTREAM_ENDPOINT", "endpoint of an S3-compatible store").derived("that of AWS"),
    text("ZERO_LITESTREAM_REGION", "region of the store").derived("that of the `AWS_*` environment, else `us-east-1`"),
    text("LITESTREAM_ACCESS_KEY_ID", "key for the store").derived("what `AWS_*`, files or the role of the node say"),
    text("LITESTREAM_SECRET_ACCESS_KEY", "secret of that key").secret(),
    text("ZERO_LITESTREAM_EXECUTABLE", "path of litestream 0.3").inert(LITESTREAM),
    text("ZERO_LITESTREAM_EXECUTABLE_V5", "path of litestream 0.5").inert(LITESTREAM),
    boolean("ZERO_LITESTREAM_RESTORE_USING_V5", "restore with litestream 0.5").default("true").inert(LITESTREAM),
    boolean("ZERO_LITESTREAM_BACKUP_USING_V5", "back up with litestream 0.5").default("false").inert(LITESTREAM),
    text("ZERO_LITESTREAM_CONFIG_PATH", "configuration file of litestream 0.3").inert(LITESTREAM),
    text("ZERO_LITESTREAM_CONFIG_PATH_V5", "configuration file of litestream 0.5").inert(LITESTREAM),
    text("ZERO_LITESTREAM_VFS_QUERY_EXECUTABLE", "program that asks the backup for its position").inert(LITESTREAM),
    number("ZERO_LITESTREAM_VFS_POLL_INTERVAL_MS", "period of asking").default("15000").inert(LITESTREAM),
    number("ZERO_LITESTREAM_VFS_POLL_TIMEOUT_MS", "wait for the answer").default("10000").inert(LITESTREAM),
    text("ZERO_LITESTREAM_VFS_LOG_FILE", "log of that program").inert(LITESTREAM),
    text("ZERO_LITESTREAM_VFS_EXTENSION_PATH", "SQLite extension that reads the backup").inert(LITESTREAM),
    number("ZERO_LITESTREAM_VFS_PROBE_INTERVAL_MS", "period of asking").default("30000").inert(LITESTREAM),
    number("ZERO_LITESTREAM_VFS_PROBE_TIMEOUT_MS", "wait for the answer").default("30000").inert(LITESTREAM),
    choice("ZERO_LITESTREAM_LOG_LEVEL", LEVELS, "log level of litestream").default("warn").inert(LITESTREAM),
    number("ZERO_LITESTREAM_PORT", "port of litestream's metrics").derived("`ZERO_PORT` + 2").inert(LITESTREAM),
    number("ZERO_LITESTREAM_CHECKPOINT_THRESHOLD_MB", "WAL size that starts a checkpoint")
        .default("40")
        .inert(LITESTREAM),
    number("ZERO_LITESTREAM_MIN_CHECKPOINT_PAGE_COUNT", "pages that start a passive checkpoint")
        .derived("threshold × 250")
        .inert(LITESTREAM),
    number("ZERO_LITESTREAM_MAX_CHECKPOINT_PAGE_COUNT", "pages that start a restart checkpoint")
        .derived("10 × the minimum")
        .inert(LITESTREAM),
    number("ZERO_LITESTREAM_INCREMENTAL_BACKUP_INTERVAL_MINUTES", "period of incremental backups with litestream 0.3")
        .default("5")
        .inert("backups are continuous; see the period in seconds"),
    number("ZERO_LITESTREAM_INCREMENTAL_BACKUP_INTERVAL_SECONDS", "period of incremental backups; at most 10")
        .default("5"),
    number("ZERO_LITESTREAM_SNAPSHOT_BACKUP_INTERVAL_HOURS", "period of full snapshots").default("4"),
    number("ZERO_LITESTREAM_SNAPSHOT_RETENTION_INTERVAL_HOURS", "age at which snapshots are removed").internal(),
    number("ZERO_LITESTREAM_RESTORE_PARALLELISM", "requests in flight while restoring").default("48"),
    number("ZERO_LITESTREAM_MULTIPART_CONCURRENCY", "parts in flight while a snapshot is written").default("48"),
    number("ZERO_LITESTREAM_MULTIPART_SIZE", "bytes per part").default("16777216"),
];

const EVENT_SETTINGS: &[Setting] = &[
    text("ZERO_CLOUD_EVENT_SINK_ENV", "name of the variable that holds the URI events are sent to").not_built(EVENTS),
    text("ZERO_CLOUD_EVENT_EXTENSION_OVERRIDES_ENV", "name of the variable that holds extensions of the events")
        .not_built(EVENTS),
];

const OLD_SPELLINGS: &[Setting] = &[
    list("ZERO_PUSH_URL", "old spelling; comes before `ZERO_MUTATE_URL` when both are given")
        .replaced_by("ZERO_MUTATE_URL"),
    text("ZERO_PUSH_API_KEY", "old spelling").secret().replaced_by("ZERO_MUTATE_API_KEY"),
    boolean("ZERO_PUSH_FORWARD_COOKIES", "old spelling").replaced_by("ZERO_MUTATE_FORWARD_COOKIES"),
    list("ZERO_PUSH_ALLOWED_CLIENT_HEADERS", "old spelling").replaced_by("ZERO_MUTATE_ALLOWED_CLIENT_HEADERS"),
    list("ZERO_PUSH_ALLOWED_REQUEST_HEADERS", "old spelling").replaced_by("ZERO_MUTATE_ALLOWED_REQUEST_HEADERS"),
    list("ZERO_GET_QUERIES_URL", "old spelling; ignored with its group when `ZERO_QUERY_URL` is given")
        .replaced_by("ZERO_QUERY_URL"),
    text("ZERO_GET_QUERIES_API_KEY", "old spelling").secret().replaced_by("ZERO_QUERY_API_KEY"),
    boolean("ZERO_GET_QUERIES_FORWARD_COOKIES", "old spelling").replaced_by("ZERO_QUERY_FORWARD_COOKIES"),
    list("ZERO_GET_QUERIES_ALLOWED_CLIENT_HEADERS", "old spelling").replaced_by("ZERO_QUERY_ALLOWED_CLIENT_HEADERS"),
    list("ZERO_GET_QUERIES_ALLOWED_REQUEST_HEADERS", "old spelling").replaced_by("ZERO_QUERY_ALLOWED_REQUEST_HEADERS"),
];

/// All that versions 0.13 to 1.9 of the original have read and later ones do not: nothing that somebody meant is passed over in silence.
const OLDER: &[Setting] = &[
    text("ZERO_SHARD_ID", "name of a shard").rejected("use ZERO_APP_ID to tell applications apart"),
    list("ZERO_SHARD_PUBLICATIONS", "publications of a shard")
        .rejected("use ZERO_APP_PUBLICATIONS, or unset it to replicate all tables of schema public"),
    text("ZERO_TENANTS_JSON", "several tenants in one process")
        .rejected("run one process for each tenant, with the variables of its env and a ZERO_APP_ID of its own"),
    text("ZERO_TENANT_ID", "name of the tenant of a process").internal(),
    text("ZERO_PULL_URL", "the query endpoint").rejected("use ZERO_QUERY_URL"),
    text("ZERO_PULL_API_KEY", "key of the query endpoint").secret().rejected("use ZERO_QUERY_API_KEY"),
    boolean("ZERO_PULL_FORWARD_COOKIES", "cookies for the query endpoint").rejected("use ZERO_QUERY_FORWARD_COOKIES"),
    text("ZERO_SCHEMA_JSON", "schema and permissions").hidden().inert(SCHEMA),
    text("ZERO_SCHEMA_FILE", "file of schema and permissions").hidden().inert(SCHEMA),
    number("ZERO_INITIAL_SYNC_ROW_BATCH_SIZE", "rows per insert of the initial copy")
        .hidden()
        .inert("rows are written as they arrive"),
    number("ZERO_LITESTREAM_RESTORE_DURATION_MS_ESTIMATE", "expected time of a restoration").hidden().inert(LITESTREAM),
    number("ZERO_REPLICA_PAGE_CACHE_SIZE_KIB", "page cache of each connection to the replica")
        .hidden()
        .inert("the page cache follows the memory of the node"),
    text("ZERO_LOG_LOG_COLLECTOR", "destination of logs").hidden().not_built(OTLP),
    text("ZERO_LOG_METRIC_COLLECTOR", "destination of metrics").hidden().not_built(OTLP),
    text("ZERO_LOG_TRACE_COLLECTOR", "destination of traces").hidden().not_built(OTLP),
];

const ENVIRONMENT: &[Setting] = &[
    text("NODE_ENV", "`development` relaxes the admin password; anything else is production").no_flag(),
    text("ECS_CONTAINER_METADATA_URI_V4", "where the platform describes the task; set `ZERO_TASK_ID` for its name")
        .no_flag(),
    text("ZERO_ENABLE_STARTUP_MESSAGE", "print a product notice").no_flag().inert("there is no notice"),
    number("ZERO_PG_SOCKET_INACTIVITY_TIMEOUT", "reset a Postgres socket without traffic")
        .default("120000")
        .no_flag()
        .inert("TCP keepalives find dead peers"),
    number("ZERO_IDLE_IN_TRANSACTION_SESSION_TIMEOUT", "Postgres setting of the CVR and change pools")
        .default("60000")
        .no_flag()
        .inert("transactions here never wait for a client"),
    number("ZERO_TRANSACTION_POOL_KEEPALIVE_MS", "keepalive inside long transactions")
        .default("5000")
        .no_flag()
        .inert("transactions here never wait for a client"),
    text("ZERO_LOG_ALL_REPLICATION_REPORTS_AT_DEBUG", "log every lag report").no_flag().inert("see the lag metrics"),
    text("ZERO_ON_CLOUD_ZERO", "platform").no_flag().inert(PLATFORM),
    text("ZERO_IN_CONTAINER", "platform").no_flag().inert(PLATFORM),
    text("ZERO_SCHEMA_PATH", "schema file of the development tools").no_flag().inert("not read by the server"),
    text("SINGLE_PROCESS", "run all workers in one process").no_flag().inert("there is always one process"),
    text("DO_NOT_TRACK", "disable telemetry").no_flag().inert("no telemetry is ever sent"),
    text("OTEL_EXPORTER_OTLP_ENDPOINT", "destination of metrics, traces and logs").no_flag().not_built(OTLP),
    text("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "destination of metrics").no_flag().not_built(OTLP),
    text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "destination of traces").no_flag().not_built(OTLP),
    text("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "destination of logs").no_flag().not_built(OTLP),
];

/// All settings in table order.
pub fn all() -> impl Iterator<Item = &'static Setting> {
    SECTIONS.iter().flat_map(|(_, settings)| settings.iter())
}
