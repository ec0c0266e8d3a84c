//! The crate graph: which crate may know which, read from the manifests.
//!
//! The graph is what keeps each crate's promise of what it does not know; a new edge is a decision, made here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Crates of the workspace and those of the workspace they may depend on.
const CRATES: &[(&str, &[&str])] = &[
    ("fault", &[]),
    ("rows", &[]),
    ("protocol", &["rows"]),
    ("permissions", &["protocol"]),
    ("ivm", &["rows"]),
    ("upstream", &["fault", "rows"]),
    ("changes", &["fault", "rows", "upstream"]),
    ("port", &["fault"]),
    ("streamer", &["fault", "rows", "changes", "port"]),
    ("replica", &["fault", "rows", "ivm"]),
    ("backup", &["fault", "rows", "replica"]),
    ("views", &["fault", "rows", "ivm", "replica", "protocol", "permissions"]),
    ("crud", &["fault", "rows", "protocol", "permissions", "upstream"]),
    ("gateway", &["fault", "rows", "views", "protocol", "port"]),
    (
        "zero-cache",
        &[
            "fault",
            "rows",
            "upstream",
            "changes",
            "streamer",
            "replica",
            "backup",
            "views",
            "port",
            "gateway",
            "crud",
            "permissions",
        ],
    ),
    // Only ever a development dependency.
    ("testkit", &["rows", "protocol"]),
    ("e2e", &["rows", "protocol", "testkit"]),
    ("crds", &[]),
    ("zero-cache-operator", &["crds"]),
];

/// Outside crates that only some may link, apart from tests.
const RESERVED: &[(&str, &[&str])] = &[
    ("tokio-postgres", &["upstream", "changes", "views", "crud", "testkit", "zero-cache-operator", "e2e"]),
    ("rusqlite", &["replica", "backup", "testkit", "e2e"]),
    ("kube", &["crds", "zero-cache-operator", "e2e"]),
    ("hyper", &["port", "streamer", "gateway", "testkit", "zero-cache", "zero-cache-operator", "e2e"]),
    ("tokio-tungstenite", &["port", "streamer", "gateway", "testkit", "e2e"]),
    ("aws-sdk-s3", &["backup", "zero-cache-operator"]),
];

/// Outside crates that some must not link, apart from tests: the vocabulary and the engine do no I/O and know no format.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("fault", &["tokio", "tokio-postgres", "rusqlite", "serde"]),
    ("rows", &["tokio", "serde", "serde_json"]),
    ("ivm", &["tokio", "serde", "serde_json"]),
    ("protocol", &["tokio"]),
    ("permissions", &["tokio"]),
    ("crds", &["tokio"]),
];

struct Manifest {
    path: PathBuf,
    name: String,
    table: Table,
}

fn read(path: &Path) -> Table {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
    let table = text.and_then(|text| text.parse::<Table>().map_err(|error| error.to_string()));
    assert!(table.is_ok(), "read {}: {table:?}", path.display());
    table.expect("checked above")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the data plane is a folder of the workspace").to_owned()
}

fn manifests() -> Vec<Manifest> {
    let root = root();
    let members =
        read(&root.join("Cargo.toml"))["workspace"]["members"].as_array().expect("members are a list").clone();
    members
        .iter()
        .map(|member| {
            let path = root.join(member.as_str().expect("a member is a path")).join("Cargo.toml");
            let table = read(&path);
            Manifest { name: table["package"]["name"].as_str().expect("a name is text").to_owned(), path, table }
        })
        .collect()
}

impl Manifest {
    /// Dependencies of one kind, also those of one platform only.
    fn dependencies(&self, kind: &str) -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        let platforms = self.table.get("target").and_then(Value::as_table);
        let tables = platforms.into_iter().flat_map(|targets| targets.values().filter_map(Value::as_table));
        for table in tables.chain([&self.table]) {
            if let Some(dependencies) = table.get(kind).and_then(Value::as_table) {
                found.extend(dependencies.iter().map(|(name, value)| (name.clone(), value.clone())));
            }
        }
        found
    }

    /// Everything linked into the crate itself.
    fn linked(&self) -> BTreeSet<String> {
        ["dependencies", "build-dependencies"].iter().flat_map(|kind| self.dependencies(kind).into_keys()).collect()
    }
}

#[test]
fn every_crate_is_listed() {
    let listed: BTreeSet<&str> = CRATES.iter().map(|(name, _)| *name).collect();
    let manifests = manifests();
    let present: BTreeSet<&str> = manifests.iter().map(|manifest| manifest.name.as_str()).collect();
    assert_eq!(present, listed);
}

#[test]
fn crates_know_only_what_they_may() {
    let crates: BTreeMap<&str, &[&str]> = CRATES.iter().copied().collect();
    let mut faults = Vec::new();
    for manifest in manifests() {
        let Some(allowed) = crates.get(manifest.name.as_str()) else { continue };
        for name in manifest.linked() {
            if crates.contains_key(name.as_str()) && !allowed.contains(&name.as_str()) {
                faults.push(format!("{} must not depend on {name}", manifest.name));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn outside_crates_are_linked_where_they_may_be() {
    let mut faults = Vec::new();
    for manifest in manifests() {
        let name = manifest.name.as_str();
        let linked = manifest.linked();
        for (library, allowed) in RESERVED {
            if linked.contains(*library) && !allowed.contains(&name) {
                faults.push(format!("{name} must not link {library}: only {allowed:?} may"));
            }
        }
        for (_, forbidden) in FORBIDDEN.iter().filter(|(of, _)| *of == name) {
            for library in forbidden.iter().filter(|library| linked.contains(**library)) {
                faults.push(format!("{name} must not link {library}"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Versions and features are chosen once, in the root manifest, and so are the lints.
#[test]
fn manifests_inherit_from_the_workspace() {
    let mut faults = Vec::new();
    for manifest in manifests() {
        let path = manifest.path.display();
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in manifest.dependencies(kind) {
                let inherited = value.get("workspace").and_then(Value::as_bool) == Some(true);
                if !inherited || value.get("version").is_some() {
                    faults.push(format!("{path}: {name} is not inherited by `workspace = true`"));
                }
            }
        }
        let lints = manifest.table.get("lints").and_then(|lints| lints.get("workspace")).and_then(Value::as_bool);
        if lints != Some(true) {
            faults.push(format!("{path}: lints are not inherited"));
        }
        if manifest.table["package"].get("publish").and_then(Value::as_bool) != Some(false) {
            faults.push(format!("{path}: publish is not false"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// A dependency that no crate takes is a decision nobody needs.
#[test]
fn the_dependency_table_is_used() {
    let table = read(&root().join("Cargo.toml"));
    let chosen = table["workspace"]["dependencies"].as_table().unwrap();
    let mut taken = BTreeSet::new();
    for manifest in manifests() {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            taken.extend(manifest.dependencies(kind).into_keys());
        }
    }
    let unused: Vec<_> = chosen.keys().filter(|name| !taken.contains(*name)).collect();
    assert!(unused.is_empty(), "nobody depends on {unused:?}");
}
