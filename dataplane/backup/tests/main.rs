//! Tests of the backup against a real writer, real files and a real S3 server.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

mod codec;
mod delete;
mod faults;
mod fixture;
mod follow;
mod kills;
mod litestream;
mod plans;
mod pressure;
mod transfer;
