//! The sync protocol between `@rocicorp/zero` clients and this server: every message as a type, both directions.
//!
//! Knows no socket, no clock, no client group; parsing takes text and returns values, writing takes values and returns
//! bytes. Text from outside never panics; what is refused is refused with the place and the reason.
//!
//! Invariant: every error body that leaves has an `origin`, because clients treat one without it as a bug of their own.

pub mod ast;
pub mod connect;
pub mod crud;
pub mod down;
pub mod error;
pub mod hash;
mod node;
pub mod normalize;
pub mod poke;
pub mod push;
pub mod schema;
pub mod up;

pub use node::ParseError;
