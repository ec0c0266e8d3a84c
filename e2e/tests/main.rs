//! Whole-process tests against `ZERO_CACHE_BIN`, or the release build in the cargo target directory.

mod app;
mod chaos;
mod sync;
