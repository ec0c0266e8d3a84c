//! The incremental query engine (header to be completed with the engine).

pub mod filter;
pub mod query;
pub mod source;
