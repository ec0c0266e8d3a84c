//! CRUD mutations: rows that clients write themselves, under the application's deployed rules.
//!
//! One mutation is one serialisable transaction upstream: its number is taken, its rules are decided, its operations are carried
//! out, in as few round trips as that allows ([`Writer::apply`]).
//!
//! Must not know: sockets, client groups' queues, SQLite, the replica. Who asks has been let in, and is asked for nothing here but
//! the claims of a verified token.
//!
//! Invariants:
//! * A number is used once: the mutation's effects and its number commit together or not at all, so what is sent again after an
//!   unknown end is done exactly once.
//! * What is not allowed does not happen: rules are those in force in the very transaction, decided over the rows that it sees, before
//!   anything is written that they forbid, and again over what was written.
//! * A client names published tables and their visible columns only, rows by their keys only. Names reach SQL as the catalog has
//!   them, values as parameters.
//! * No setting of a role, a database or another user of a pooled connection decides what a statement here does. Triggers of the
//!   application see the session as their owner configured it.
//! * No value of a row and no claim is logged.

mod attempt;
mod catalog;
mod condition;
mod fault;
mod known;
mod metrics;
mod pipeline;
mod pool;
mod request;
mod rules;
mod statement;
mod step;
mod value;
mod writer;

pub use metrics::Metrics;
pub use request::{Outcome, Request};
pub use writer::{Options, Writer};
