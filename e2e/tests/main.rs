//! Whole-process tests against `ZERO_CACHE_BIN`, or the release build in the cargo target directory.

mod app;
mod bad_input;
mod chaos;
mod restart;
mod schema_change;
mod sharing;
mod sync;
mod types;
