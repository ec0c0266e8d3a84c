//! `kubectl` and `helm` as a person would use them: their output, and their complaint as the error.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a program in the project's folder; its standard output.
pub async fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        pipe.write_all(input.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub async fn kubectl(arguments: &[&str]) -> Result<String> {
    run("kubectl", arguments, None).await
}

pub async fn helm(arguments: &[&str]) -> Result<String> {
    run("helm", arguments, None).await
}

/// Applies one object or a list of them as a person does; what kubectl said.
pub async fn apply(object: &Value) -> Result<String> {
    run("kubectl", &["apply", "-f", "-"], Some(&object.to_string())).await
}

/// What `kubectl get ... -o json` shows.
pub async fn get(namespace: &str, what: &[&str]) -> Result<Value> {
    let arguments = [&["get", "-n", namespace, "-o", "json"], what].concat();
    serde_json::from_str(&kubectl(&arguments).await?).context("parse what kubectl shows")
}

/// The items of a list.
pub async fn list(namespace: &str, kind: &str, selector: &str) -> Result<Vec<Value>> {
    let found = get(namespace, &[kind, "-l", selector]).await?;
    Ok(found["items"].as_array().cloned().unwrap_or_default())
}
