//! Errors of the server's own parts, by type and variant. A type alone stands for all its variants.

use crate::Entry;
use crate::class::Class::{NewCopy, OneThing, Passes, Person};

const RETRY: &str = "see the message for the SQLSTATE or the kind of failure, and above for what to do about it";
const START: &str = "correct what the message names and start again";
const REPORT: &str = "report it with the message";
const CLIENT: &str = "nothing here: the application or its user mends it";
const QUERY: &str = "correct the query in the application, or the schema it is for";

// Upstream: what the stream and the copy meet.
pub const CONFIGURATION: Entry = Entry::new(
    "upstream::Error::Configuration",
    "Postgres or the configuration is not as required",
    Person,
    Person,
    "do what the message says",
);
pub const TRANSIENT: Entry =
    Entry::new("upstream::Error::Transient", "Postgres is away or busy", Passes, Passes, RETRY);
pub const GARBLED: Entry = Entry::new(
    "upstream::Error::Garbled",
    "a message of Postgres cannot be understood",
    Passes,
    NewCopy,
    "something between here and Postgres changes messages, or Postgres is newer than this server: another copy is made",
);
pub const UNREADABLE: Entry = Entry::new(
    "upstream::Unreadable",
    "a value cannot be represented, such as text that is not UTF-8",
    OneThing,
    OneThing,
    "correct the value upstream: the row comes back with its next change",
);
pub const RESET: Entry = Entry::new(
    "upstream::Error::ResetRequired",
    "upstream can no longer continue the replica",
    NewCopy,
    NewCopy,
    "another copy is made",
);
pub const SLOT_IN_USE: Entry = Entry::new(
    "upstream::Error::SlotInUse",
    "another process streams from the slot",
    Passes,
    Passes,
    "end the other process, see pg_replication_slots",
);
pub const OCCUPIED: Entry = Entry::new(
    "upstream::Error::Occupied",
    "Rocicorp's zero-cache is at work on the same application and shard",
    Person,
    Person,
    "stop the process that the message names: this server takes over by itself then; or give this server another ZERO_APP_ID",
);
pub const PANICKED: Entry = Entry::new(
    "upstream::Error::Panicked",
    "a task met a fault of the program",
    Person,
    Person,
    "the process ends with it in its log; report it",
);

// The change log.
pub const CHANGES_CONNECT: Entry =
    Entry::new("changes::Error::Connect", "the change database is away or refuses us", Passes, Passes, RETRY);
pub const CHANGES_STATEMENT: Entry =
    Entry::new("changes::Error::Statement", "the change database refused a statement", Passes, Passes, RETRY);
pub const CHANGES_NOT_OWNER: Entry = Entry::new(
    "changes::Error::NotOwner",
    "another process replicates now",
    Person,
    Person,
    "nothing: this process ends",
);
pub const CHANGES_TOO_OLD: Entry = Entry::new(
    "changes::Error::TooOld",
    "the change log begins after the replica",
    NewCopy,
    NewCopy,
    "the replica is fetched anew",
);
pub const CHANGES_SET_BACK: Entry = Entry::new(
    "changes::Error::SetBack",
    "the change database has lost what it had stored",
    NewCopy,
    NewCopy,
    "another copy is made; with ZERO_AUTO_RESET=false, allow that",
);
pub const CHANGES_EMPTY: Entry =
    Entry::new("changes::Error::Empty", "the change database holds no log", NewCopy, NewCopy, "another copy is made");
pub const CHANGES_OUT_OF_ORDER: Entry =
    Entry::new("changes::Error::OutOfOrder", "transactions do not ascend", Person, Person, REPORT);
pub const CHANGES_UNREADABLE: Entry = Entry::new(
    "changes::Error::Unreadable",
    "a stored transaction cannot be read",
    NewCopy,
    NewCopy,
    "another copy is made",
);

// Between nodes.
pub const STREAM_TRANSIENT: Entry =
    Entry::new("streamer::Error::Transient", "the replication-manager is away", Passes, Passes, "see whether it runs");
pub const STREAM_GONE: Entry = Entry::new(
    "streamer::Error::Gone",
    "the replication-manager ends",
    Passes,
    Passes,
    "nothing: its successor is looked for",
);
pub const STREAM_UNVERIFIED: Entry = Entry::new(
    "streamer::Error::Unverified",
    "the replication-manager's certificate is not trusted",
    Passes,
    Person,
    "set ZERO_CHANGE_STREAMER_TLS_CA_FILE, or renew the certificate",
);
pub const STREAM_RESET: Entry = Entry::new(
    "streamer::Error::Reset",
    "the change log does not continue the replica",
    NewCopy,
    NewCopy,
    "the replica is fetched anew",
);
pub const STREAM_CONFIGURATION: Entry = Entry::new(
    "streamer::Error::Configuration",
    "the nodes are not configured for each other",
    Person,
    Person,
    "do what the message says",
);

// The replica.
pub const REPLICA_REFUSED: Entry = Entry::new(
    "replica::Error::Refused",
    "the replica's file cannot be opened",
    Person,
    Person,
    "do what the message says",
);
pub const REPLICA_RESYNC: Entry = Entry::new(
    "replica::Error::Resync",
    "the replica's contents cannot be continued",
    NewCopy,
    NewCopy,
    "another copy is made",
);
pub const REPLICA_STORAGE: Entry = Entry::new(
    "replica::Error::Storage",
    "the disk or the operating system failed",
    Person,
    Person,
    "see the disk; the process ends, and goes on where it was when it is started again",
);
pub const REPLICA_WITHHELD: Entry = Entry::new(
    "replica::Error::Withheld",
    "a commit waits for the change log",
    Passes,
    Passes,
    "see the change database",
);

// The backup.
pub const BACKUP_REFUSED: Entry = Entry::new(
    "backup::Error::Refused",
    "the backup is not configured rightly",
    Person,
    Person,
    "do what the message says",
);
pub const BACKUP_DENIED: Entry = Entry::new(
    "backup::Error::Denied",
    "the store refuses us",
    Person,
    Person,
    "correct the credentials, or the bucket's policy",
);
pub const BACKUP_UNAVAILABLE: Entry =
    Entry::new("backup::Error::Unavailable", "the store is away", Passes, Passes, "see the store");
pub const BACKUP_NOTHING: Entry =
    Entry::new("backup::Error::Nothing", "there is no backup", NewCopy, NewCopy, "another copy is made");
pub const BACKUP_MISSING: Entry =
    Entry::new("backup::Error::Missing", "a file of the backup is gone", NewCopy, NewCopy, "another copy is made");
pub const BACKUP_DAMAGED: Entry = Entry::new(
    "backup::Error::Damaged",
    "a file of the backup is damaged",
    NewCopy,
    NewCopy,
    "see the store; another copy is made",
);
pub const BACKUP_FOREIGN: Entry = Entry::new(
    "backup::Error::Foreign",
    "the backup is of another database",
    NewCopy,
    NewCopy,
    "another copy is made; give each application a backup of its own",
);
pub const BACKUP_SUPERSEDED: Entry = Entry::new(
    "backup::Error::Superseded",
    "another process owns the backup now",
    Person,
    Person,
    "nothing: the backup of this process ends",
);
pub const BACKUP_IN_USE: Entry = Entry::new(
    "backup::Error::InUse",
    "somebody still writes what is to be deleted",
    Person,
    Person,
    "end the process that writes",
);
pub const BACKUP_DISK_FULL: Entry = Entry::new(
    "backup::Error::DiskFull",
    "the local disk has no room for what is restored",
    Person,
    Person,
    "make room on the disk",
);
pub const BACKUP_LOCAL: Entry =
    Entry::new("backup::Error::Local", "the local disk or SQLite failed", Passes, Person, "see the disk");
pub const BACKUP_REPLICA: Entry = Entry::new(
    "backup::Error::Replica",
    "what was restored cannot be opened",
    NewCopy,
    NewCopy,
    "another copy is made",
);
pub const BACKUP_CANCELLED: Entry = Entry::new(
    "backup::Error::Cancelled",
    "the work was given up, because the process stops",
    Passes,
    Passes,
    "nothing",
);

// The views.
pub const CVR_AWAY: Entry =
    Entry::new("views::store::Unopened", "the CVR database is away or does not answer", Passes, Passes, RETRY);
pub const VIEWS_UNSTARTED: Entry = Entry::new(
    "views::start",
    "the views cannot begin to work with the replica",
    Passes,
    Person,
    "see the message: the disk of the replica, or limits of this machine",
);

// API servers. What is told to a client, its application asks again.
const API: &str = "see the API server: the client is told, and asks again";
pub const CALL_REFUSED: Entry = Entry::new(
    "gateway::CallError::Refused",
    "a call must not be made as the client wishes it",
    OneThing,
    OneThing,
    "see the URLs and headers that are configured for the API server",
);
pub const CALL_NETWORK: Entry =
    Entry::new("gateway::CallError::Network", "the API server cannot be reached", Passes, OneThing, API);
pub const CALL_EXHAUSTED: Entry = Entry::new(
    "gateway::CallError::Exhausted",
    "this node can make no further connection",
    Passes,
    Passes,
    "raise the limit of open files; clients come back by themselves",
);
pub const CALL_CROWDED: Entry = Entry::new(
    "gateway::CallError::Crowded",
    "too many calls of the API server wait for their turn",
    Passes,
    Passes,
    "see how long the API server takes; clients come back by themselves",
);
pub const CALL_TIMEOUT: Entry =
    Entry::new("gateway::CallError::Timeout", "the API server does not answer in time", OneThing, OneThing, API);
pub const CALL_FAILED: Entry =
    Entry::new("gateway::CallError::Failed", "the API server met an error of its own", Passes, OneThing, API);
pub const CALL_ANSWERED: Entry =
    Entry::new("gateway::CallError::Answered", "the API server refuses a call", OneThing, OneThing, API);
pub const CALL_TOO_LONG: Entry =
    Entry::new("gateway::CallError::TooLong", "the answer of an API server is too long", OneThing, OneThing, API);

/// All lines.
pub const ERRORS: &[Entry] = &[
    CONFIGURATION,
    TRANSIENT,
    GARBLED,
    UNREADABLE,
    RESET,
    SLOT_IN_USE,
    OCCUPIED,
    PANICKED,
    CHANGES_CONNECT,
    CHANGES_STATEMENT,
    CHANGES_NOT_OWNER,
    CHANGES_TOO_OLD,
    CHANGES_SET_BACK,
    CHANGES_EMPTY,
    CHANGES_OUT_OF_ORDER,
    CHANGES_UNREADABLE,
    Entry::new("changes::CodecError", "a stored transaction cannot be read", NewCopy, NewCopy, "another copy is made"),
    STREAM_TRANSIENT,
    STREAM_GONE,
    STREAM_UNVERIFIED,
    STREAM_RESET,
    STREAM_CONFIGURATION,
    Entry::new(
        "streamer::Refusal",
        "the replication-manager refuses a follower",
        Passes,
        Person,
        "do what the message says",
    ),
    Entry::new(
        "streamer::FrameError",
        "another node does not follow the protocol",
        Passes,
        Person,
        "run the same version on all nodes",
    ),
    Entry::new(
        "streamer::Ended",
        "the connection between nodes failed",
        Passes,
        Passes,
        "see the network between the nodes",
    ),
    Entry::new("streamer::BuildError", "the port of the change stream cannot be opened", Person, Person, START),
    Entry::new("streamer::InvalidToken", "a token of the change stream is not usable", Person, Person, START),
    Entry::new("streamer::Unusable", "a certificate or key cannot be read", Person, Person, START),
    // The replica.
    REPLICA_REFUSED,
    REPLICA_RESYNC,
    REPLICA_STORAGE,
    REPLICA_WITHHELD,
    // The backup.
    BACKUP_REFUSED,
    BACKUP_DENIED,
    BACKUP_UNAVAILABLE,
    BACKUP_NOTHING,
    BACKUP_MISSING,
    BACKUP_DAMAGED,
    BACKUP_FOREIGN,
    BACKUP_SUPERSEDED,
    BACKUP_IN_USE,
    BACKUP_DISK_FULL,
    BACKUP_LOCAL,
    BACKUP_REPLICA,
    BACKUP_CANCELLED,
    // The engine and the views.
    Entry::new(
        "rows::NotVisible",
        "a table has no key that clients can use",
        OneThing,
        OneThing,
        "give the table a primary key",
    ),
    Entry::new("rows::ParseError", "a stored version cannot be read", NewCopy, NewCopy, "another copy is made"),
    Entry::new(
        "rows::UnsafeInteger",
        "an integer is beyond what JavaScript can hold",
        OneThing,
        OneThing,
        "make the column text, or keep such rows out of the query",
    ),
    Entry::new("ivm::BuildError", "a query does not fit the schema", OneThing, OneThing, QUERY),
    Entry::new("ivm::AdvanceError", "a query must be run anew", Passes, Passes, "nothing: it is run anew"),
    Entry::new("ivm::RehydrateReason", "a query must be run anew", Passes, Passes, "nothing: it is run anew"),
    Entry::new("ivm::SourceError", "the replica cannot be read", Passes, Passes, "see the disk"),
    CVR_AWAY,
    VIEWS_UNSTARTED,
    Entry::new("views::Failure", "a query cannot be served", OneThing, OneThing, QUERY),
    Entry::new("views::Unsupported", "a query uses what is not known here", OneThing, OneThing, QUERY),
    Entry::new(
        "views::Unencodable",
        "an integer is beyond what JavaScript can hold",
        OneThing,
        OneThing,
        "make the column text, or keep such rows out of the query",
    ),
    Entry::new(
        "views::DecodeError",
        "a record of the CVR database is damaged",
        OneThing,
        OneThing,
        "nothing: the client group starts over",
    ),
    Entry::new(
        "views::NoRoom",
        "the node has no room left for a result, in memory or beside the replica",
        Passes,
        OneThing,
        "give the node more memory or disk, or ask for less; clients are told ServerOverloaded and come back",
    ),
    Entry::new(
        "views::PushError",
        "a row of a result cannot be encoded, or there is no room for it",
        OneThing,
        OneThing,
        "see views::Unencodable and views::NoRoom",
    ),
    Entry::new(
        "views::BodyError",
        "encoded rows cannot be kept, or not be read again",
        Passes,
        OneThing,
        "see the disk beside the replica; clients come back and are told the difference",
    ),
    Entry::new("views::Refused", "a client group asks for what is not allowed", OneThing, OneThing, CLIENT),
    // Clients and API servers.
    CALL_REFUSED,
    CALL_NETWORK,
    CALL_EXHAUSTED,
    CALL_CROWDED,
    CALL_TIMEOUT,
    CALL_FAILED,
    CALL_ANSWERED,
    CALL_TOO_LONG,
    Entry::new("gateway::AuthError", "the configuration of tokens is wrong", Person, Person, START),
    Entry::new("gateway::EndpointError", "a URL of an API server is wrong", Person, Person, START),
    Entry::new("gateway::BuildError", "the clients' port cannot be opened", Person, Person, START),
    Entry::new("port::BindError", "a port cannot be opened", Person, Person, START),
    Entry::new("protocol::ConnectError", "a client's request cannot be read", OneThing, OneThing, CLIENT),
    Entry::new("protocol::InvalidMessage", "a client's message cannot be read", OneThing, OneThing, CLIENT),
    Entry::new(
        "protocol::ParseError",
        "a transformed query cannot be read",
        OneThing,
        OneThing,
        "see the API server that transforms queries",
    ),
];
