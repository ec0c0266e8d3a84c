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
fn run_without_a_cluster_says_so() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zero-cache-operator"));
    command.arg("run").env("KUBECONFIG", "/nonexistent").env_remove("KUBERNETES_SERVICE_HOST");
    let output = command.output().expect("start the operator");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(said.contains("find the cluster"), "{said}");
}

#[test]
fn help_names_the_subcommands() {
    let text = String::from_utf8(run(&["--help"]).stdout).unwrap();
    assert!(text.contains("crd") && text.contains("run"), "{text}");
}
