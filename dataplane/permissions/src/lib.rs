//! Deployed permissions: which rows a user may see and change, as an application's owner wrote it down.
//!
//! Everything is a value and a function of values: text to rules ([`Permissions::parse`]), rules and a user's claims to conditions
//! ([`Policy::bind`]), a client's query to one that yields only what the rules allow ([`restrict()`]).
//!
//! Must not know: sockets, SQLite, Postgres, client groups, where the text comes from, how a condition is decided.
//!
//! Invariants:
//! * What is not allowed is denied: no rules, no policy, an empty policy allow nothing, and neither does a rule that cannot be decided
//!   for a user because a claim is of the wrong kind.
//! * What is returned holds no parameter any more, so whoever keys anything by it never mixes users with different claims.
//! * A subquery of a rule is marked so that its rows never reach a client, whatever the text said; one of a client never is.
//! * Recursion and growth are bounded, whatever the text and the query are.

mod bind;
mod check;
mod deployed;
mod parse;
mod restrict;

pub use bind::{Bound, LIST_MAX, Parameters, Unusable, bind};
pub use check::{Columns, Problem};
pub use deployed::{Action, Permissions, Policy};
pub use parse::{BYTES_MAX, NODES_MAX, RULE_DEPTH_MAX};
pub use restrict::{DEPTH_MAX, RestrictError, Restricted, restrict};
