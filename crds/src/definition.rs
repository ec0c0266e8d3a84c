//! The definition as the API server takes it.

use kube::CustomResourceExt as _;
use serde_json::Value;

use crate::ZeroCache;

/// The definition as the API server takes it.
#[must_use]
pub fn definition() -> Value {
    let mut definition =
        serde_json::to_value(ZeroCache::crd()).expect("the definition is made of strings, numbers, lists and maps");
    tidy(&mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    definition
}

/// The definition as a file.
#[must_use]
pub fn manifest() -> String {
    let text = serde_saphyr::to_string(&definition()).expect("a JSON value can be written as YAML");
    format!("# Generated from the crate `crds`; UPDATE_REFERENCE=1 cargo test -p crds writes it anew.\n{text}")
}

/// Takes `nullable` off, so that the API server drops nulls instead of keeping them, and shortens the descriptions of
/// Kubernetes' own types to their first sentence: a definition that `kubectl apply` can store must stay below 256 KiB.
fn tidy(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    fields.remove("nullable");
    if let Some(Value::String(description)) = fields.get_mut("description")
        && let Some(end) = description.find(". ").filter(|_| description.len() > 200)
    {
        description.truncate(end + 1);
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(tidy);
    }
    for part in ["items", "additionalProperties"] {
        if let Some(part) = fields.get_mut(part) {
            tidy(part);
        }
    }
}
