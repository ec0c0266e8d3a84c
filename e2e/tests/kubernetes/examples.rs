//! The examples, as the real API server sees them.

use anyhow::{Context, Result, ensure};

use crate::ground::{Ground, Place};
use crate::kubectl::{kubectl, root};

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_accepted() -> Result<()> {
    let _place = Place::shared().await;
    Ground::get().await?;
    kubectl(&["create", "namespace", "examples"]).await?;
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("examples/kubernetes"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let file = path.to_str().context("the path is text")?;
        let said =
            kubectl(&["apply", "-n", "examples", "--dry-run=server", "--warnings-as-errors", "-f", file]).await?;
        ensure!(said.contains("zerocache.zerocache.dev/"), "{file} holds no ZeroCache: {said}");
        count += 1;
    }
    ensure!(count >= 5, "only {count} examples were found");
    kubectl(&["delete", "namespace", "examples", "--wait=false"]).await.map(drop)
}
