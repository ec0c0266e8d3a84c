//! `ERRORS.md`, and that no error type of the data plane is missing from it.

use std::collections::BTreeSet;
use std::path::Path;

use fault::path::ERRORS;

/// Crates whose errors are on the way from Postgres to a client, or stop it.
const CRATES: &[&str] =
    &["upstream", "changes", "streamer", "replica", "backup", "rows", "ivm", "views", "gateway", "port", "protocol"];

#[test]
fn the_page_is_current() {
    crate::reference_page::check("ERRORS.md", &fault::page());
}

#[test]
fn names_are_unique_and_every_person_is_told_what_to_do() {
    for entries in [ERRORS, fault::SQLSTATES, fault::IO_KINDS, fault::SQLITE_CODES] {
        let names: BTreeSet<&str> = entries.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), entries.len());
        for entry in entries {
            assert!(!entry.remedy.is_empty() && !entry.meaning.is_empty(), "{}", entry.name);
            assert!(entry.repeated >= entry.class, "{} is harmless when it comes again", entry.name);
        }
    }
}

/// Each error type is listed as a whole, or each of its variants is.
#[test]
fn every_error_has_a_class() {
    let listed: BTreeSet<&str> = ERRORS.iter().map(|entry| entry.name).collect();
    let mut missing = Vec::new();
    for name in CRATES {
        let mut types = Vec::new();
        error_types(&Path::new(env!("CARGO_MANIFEST_DIR")).join(name).join("src"), &mut types);
        for (error, variants) in types {
            let whole = format!("{name}::{error}");
            let of = |variant: &String| format!("{whole}::{variant}");
            if !listed.contains(whole.as_str()) {
                missing.extend(variants.iter().map(of).filter(|variant| !listed.contains(variant.as_str())));
                if variants.is_empty() {
                    missing.push(whole);
                }
            }
        }
    }
    assert!(missing.is_empty(), "give them a line in fault/src/path.rs: {missing:#?}");
}

/// Error types of a folder's sources with their variants.
fn error_types(folder: &Path, found: &mut Vec<(String, Vec<String>)>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            error_types(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.extend(text.split("thiserror::Error").skip(1).filter_map(declared));
        }
    }
}

/// The type that a `derive` precedes: its name and, of an enum, its variants.
fn declared(after: &str) -> Option<(String, Vec<String>)> {
    let mut lines = after.lines().skip(1);
    let head = lines.find(|line| line.contains("enum ") || line.contains("struct "))?;
    let word = if head.contains("enum ") { "enum " } else { "struct " };
    let name = head.split(word).nth(1)?.split(|c: char| !c.is_alphanumeric()).next()?.to_owned();
    let is_variant = |line: &str| line.starts_with("    ") && line[4..].starts_with(|c: char| c.is_ascii_uppercase());
    let variant = |line: &str| line.trim().split(|c: char| !c.is_alphanumeric()).next().map(str::to_owned);
    let variants = match word {
        "enum " => lines.take_while(|line| *line != "}").filter(|line| is_variant(line)).filter_map(variant).collect(),
        _ => Vec::new(),
    };
    Some((name, variants))
}
