//! Whole-process tests against `ZERO_CACHE_BIN`, or the release build in the cargo target directory.
//!
//! | variable | effect |
//! | --- | --- |
//! | `ZERO_CACHE_BIN` | the server to test; any server of the protocol will do for most tests |
//! | `ZERO_SEED` | replays a randomised test, which prints its seed |
//! | `ZERO_TEST_KEEP` | keeps the servers' folders with their logs and replicas |
//! | `ZERO_TEST_PG14`, `_PG15`, `_PG18` | PostgreSQL folders to use instead of the usual ones |
//! | `ZERO_TEST_PGBOUNCER` | the pooler to use instead of Debian's |
//! | `ZERO_RULES` | how many random sets of permissions are tried; 3 |
//! | `ZERO_SOAK_SECONDS` | how long random faults strike a deployment of many nodes; 90 |
//! | `ZERO_TAKE_OVERS` | how often a second replication-manager takes over; 10 |

mod app;
mod bad_input;
mod chaos;
mod cluster;
mod compose;
mod crud;
mod deployments;
mod faults;
mod large;
mod permissions;
mod restart;
mod schema_change;
mod sharing;
mod stopping;
mod sync;
mod takeover;
mod types;
