//! The `ZeroCache` resource: what a user asks of the operator, and what the operator reports.
//!
//! Knows no cluster, no child object and no flow; it is the shape of a document and the rules the API server checks for it.
//! `manifests/` holds the generated definition, and a test keeps it current.
//!
//! Invariant: a document the API server accepts is read without loss, because unknown fields are pruned and every string,
//! list and map has a bound that keeps the cost of the rules finite. A field that is not given is absent, never null, so that
//! `has()` in a rule means given.

pub mod spec;
pub mod status;

use kube::CustomResourceExt as _;

pub use spec::{ZeroCache, ZeroCacheSpec};
pub use status::ZeroCacheStatus;

/// The definition as the API server takes it.
#[must_use]
pub fn definition() -> serde_json::Value {
    serde_json::to_value(ZeroCache::crd()).expect("the definition is made of strings, numbers, lists and maps")
}

/// The definition as a file.
#[must_use]
pub fn manifest() -> String {
    let text = serde_saphyr::to_string(&definition()).expect("a JSON value can be written as YAML");
    format!("# Generated from the crate `crds`; UPDATE_REFERENCE=1 cargo test -p crds writes it anew.\n{text}")
}
