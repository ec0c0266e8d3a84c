//! The pages that people read: they name what is in the code, and lead somewhere.

use std::path::{Path, PathBuf};

/// Text of a file of the project.
fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// Values of the constants of one module of `conditions.rs`.
fn constants(source: &str, module: &str) -> Vec<String> {
    let (_, rest) = source.split_once(&format!("pub mod {module} {{")).unwrap();
    let (body, _) = rest.split_once("\n}").unwrap();
    let values = body.lines().filter_map(|line| line.trim().strip_prefix("pub const ")?.split('"').nth(1));
    values.map(str::to_owned).collect()
}

#[test]
fn each_condition_reason_and_event_is_explained() {
    let source = read("crds/src/conditions.rs");
    let page = read("operator/CONDITIONS.md");
    let (page, events) = page.split_once("## Events").unwrap();
    let kinds = constants(&source, "kind");
    assert_eq!(kinds, crds::conditions::kind::ALL);
    for kind in kinds {
        let headings: Vec<&str> = page.lines().filter(|line| line.starts_with("## ")).collect();
        assert!(headings.iter().any(|line| line.contains(&kind)), "{kind} has no section");
    }
    for reason in constants(&source, "reason") {
        assert!(page.contains(&format!("`{reason}`")), "the reason {reason} is not explained");
    }
    for event in constants(&source, "event") {
        assert!(events.contains(&format!("`{event}`")), "the event {event} is not explained");
    }
    // And nothing is explained that there is not: names in the tables' first columns are of that kind.
    let known: Vec<String> = ["kind", "reason", "event"].iter().flat_map(|module| constants(&source, module)).collect();
    let first = |line: &str| line.strip_prefix("| ").and_then(|line| line.split(" | ").next().map(str::to_owned));
    for cell in page.lines().chain(events.lines()).filter_map(first) {
        for name in cell.split('`').skip(1).step_by(2) {
            assert!(known.iter().any(|known| known == name), "{name} is in the page, but not in the code");
        }
    }
}

/// Pages that people read.
const PAGES: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "operator/CONDITIONS.md",
    "operator/DEPLOYMENT.md",
    "charts/zero-cache-crds/README.md",
    "charts/zero-cache-operator/README.md",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn links_lead_somewhere() {
    for page in PAGES {
        let text = read(page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => root().join(page),
                path => root().join(page).parent().unwrap().join(path),
            };
            assert!(target.exists(), "{page} links to {link}");
            let slug = |line: &str| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            let is_there = || std::fs::read_to_string(&target).unwrap().lines().any(|line| slug(line) == anchor);
            assert!(anchor.is_empty() || is_there(), "{page} links to {link}");
        }
    }
}

/// Files that the tables name are there, seen from the root, from the operator's sources, or beside the file named before.
#[test]
fn files_that_are_named_exist() {
    for page in ["operator/DEPLOYMENT.md"] {
        let text = read(page);
        let mut beside = PathBuf::new();
        let mut seen = 0;
        for name in text.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs")) {
            let places = [root().join(name), root().join("operator/src").join(name), beside.join(name)];
            let found = places.iter().find(|place| place.is_file());
            let found = found.unwrap_or_else(|| panic!("{page} names {name}"));
            beside = found.parent().unwrap().to_owned();
            seen += 1;
        }
        assert!(seen > 20, "{page} names {seen} files");
    }
}
