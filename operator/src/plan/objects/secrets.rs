//! Secrets that the operator makes up, once.

use crds::names::child;
use k8s_openapi::api::core::v1::Secret;

use super::super::wanted::Wanted;
use super::meta::Meta;

/// A Secret whose value is made when it does not exist, and never changed afterwards.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedSecret {
    /// Without data: planning knows no randomness.
    pub secret: Secret,
    pub key: &'static str,
    /// Random bytes, to be written in hexadecimal digits.
    pub length: usize,
}

pub(super) fn generated(wanted: &Wanted, meta: &Meta) -> Vec<GeneratedSecret> {
    let secret = |name: &String| GeneratedSecret {
        secret: Secret { metadata: meta.shared(name.clone()), type_: Some("Opaque".to_owned()), ..Secret::default() },
        key: child::SECRET_KEY,
        length: 32,
    };
    wanted.generated.iter().map(secret).collect()
}
