//! Continuous backup of the replica to an object store, and its restoration.
//!
//! Knows SQLite's files and the LTX format; no Postgres, no socket of ours, no client.
