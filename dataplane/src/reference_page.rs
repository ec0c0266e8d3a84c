//! Generated pages that are committed: a test compares them with what the code says now.

use std::path::Path;

/// Fails when the page is stale. With `UPDATE_REFERENCE` in the environment it is written instead.
pub fn check(name: &str, current: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, current).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    if let Some((line, (old, new))) =
        committed.lines().chain([""]).zip(current.lines().chain([""])).enumerate().find(|(_, (old, new))| old != new)
    {
        panic!(
            "{name} is stale at line {}:\n  there: {old}\n  now:   {new}\nwrite it anew with UPDATE_REFERENCE=1",
            line + 1
        );
    }
    assert_eq!(committed, current, "{name} is stale; write it anew with UPDATE_REFERENCE=1");
}
