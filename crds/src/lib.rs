//! The `ZeroCache` resource: what a user asks of the operator, and what the operator reports.
//!
//! Knows no cluster, no child object and no flow; it is the shape of a document and the rules the API server checks for it, and
//! the names that the operator, its chart and its tests must agree on. `manifests/` holds the generated definition, and a test
//! keeps it current.
//!
//! Invariant: a document the API server accepts is read without loss, because unknown fields are pruned and every string,
//! list and map of ours has a bound that keeps the cost of the rules finite. A field that is not given is absent, never null:
//! no field is nullable, so the API server drops nulls, and `has()` in a rule means given.

pub mod conditions;
mod definition;
pub mod names;
pub mod quantity;
pub mod rules;
mod span;
pub mod spec;
pub mod status;

pub use definition::{definition, manifest};
pub use span::Span;
pub use spec::{ZeroCache, ZeroCacheSpec};
pub use status::ZeroCacheStatus;
