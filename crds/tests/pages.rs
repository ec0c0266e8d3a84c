//! The page about conditions and events names each of them.

use std::path::Path;

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
