//! The program from outside.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zero-cache-operator")).args(arguments).output().expect("start the operator")
}

#[test]
fn crd_prints_the_committed_definition() {
    let output = run(&["crd"]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), crds::manifest());
}

#[test]
fn run_says_that_it_is_not_built() {
    let output = run(&["run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("not in this build"));
}

#[test]
fn help_names_the_subcommands() {
    let text = String::from_utf8(run(&["--help"]).stdout).unwrap();
    assert!(text.contains("crd") && text.contains("run"), "{text}");
}
