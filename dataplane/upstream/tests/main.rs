//! The crate against real Postgres servers, started by the test kit.

mod ddl;
mod model;
mod random;
mod slots;
mod start;
mod types;
