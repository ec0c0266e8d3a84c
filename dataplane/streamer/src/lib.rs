//! The change stream between nodes: stored transactions from the node that owns the slot to those that serve clients.
//!
//! Knows the change log and sockets; no SQLite, no object store, no client.
