//! The half of a node that serves clients: its views over the replica.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use replica::{Description, Writer};
use upstream::Address;
use views::store::Copy;

use crate::node::{Node, await_database};

/// Starts the views. Clients are let in by the caller, by opening the gate.
pub async fn start(node: &Node<'_>, writer: &Writer, copy: &Description) -> Result<views::Started> {
    let config = node.config;
    let cvr: Address = config.cvr.db.expose().parse().context("ZERO_CVR_DB")?;
    await_database("ZERO_CVR_DB", &cvr).await?;
    let path: PathBuf = writer.path().to_owned();
    let connector: views::store::Connector = Arc::new(move || {
        let cvr = cvr.clone();
        Box::pin(async move { upstream::connect(&cvr, "zero-cvr").await.map_err(|e| e.to_string()) })
    });
    let shard = format!("{}_{}", config.app.id, config.app.shard_num);
    views::start(views::Options {
        clients_table: format!("{shard}.clients"),
        mutations_table: format!("{shard}.mutations"),
        cvr_schema: format!("{shard}/cvr"),
        cvr: connector,
        cvr_connections_max: config.cvr.connections_max,
        copy: Copy { id: copy.replica_id.clone(), version: copy.initial_version },
        memory_bytes: crate::memory::limit(),
        cvr_purge_hours: i32::try_from(config.cvr.inactivity_threshold.as_secs() / 3600).unwrap_or(i32::MAX).max(1),
        hydrators: config.engine.threads,
        open_reader: Arc::new(move || replica::Reader::open(&path)),
        schema: writer.schema(),
        transformer: Arc::clone(&node.transformer),
        revalidate: config.auth.revalidate_interval,
        retransform: config.auth.retransform_interval,
        metrics: node.view_metrics.clone(),
    })
    .await
    .map_err(anyhow::Error::msg)
}
