//! The half of a node that serves clients: its views over the replica.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use replica::{Description, Writer};
use upstream::Address;
use views::Ending;
use views::store::{Copy, Unopened};

use crate::attempts::Attempts;
use crate::config::Role;
use crate::node::{Node, await_database};

/// One turn of the views' thread that takes longer than this will never end. Large steps take seconds.
const STUCK: Duration = Duration::from_secs(15 * 60);
/// Nobody is told anything new while nothing is stored. A restart mends a connection that hangs, and costs nothing if the database
/// is away for so long.
const UNSTORED: Duration = Duration::from_secs(10 * 60);

/// Watches that the views' thread goes on and that what it hands over is stored, while what is returned lives.
pub fn watch(node: &Node<'_>, views: &views::Started) -> [port::Watched; 2] {
    let (turns, unflushed) = (views.turns.clone(), views.unflushed_since.clone());
    let age = move || unflushed.borrow().map(|since| since.elapsed());
    [
        node.liveness.watch("the views", STUCK, move || Some(turns.age())),
        node.liveness.watch("the storing of client view records", UNSTORED, age),
    ]
}

/// Starts the views. Clients are let in by the caller, by opening the gate.
pub async fn start(node: &Node<'_>, writer: &Writer, copy: &Description) -> Result<views::Started> {
    let cvr: Address = node.config.cvr.db.expose().parse().context("ZERO_CVR_DB")?;
    let start = async || {
        await_database("ZERO_CVR_DB", &cvr).await?;
        check_encoding(&cvr).await?;
        Ok(views::start(options(node, cvr.clone(), writer, copy)).await?)
    };
    Attempts::new("start the views", &node.status).until(start).await
}

/// Fails only on what waiting cannot mend.
async fn check_encoding(cvr: &Address) -> Result<()> {
    let checking = async {
        let client = upstream::connect_pooled(cvr, "zero-start").await?;
        upstream::check_encoding(&client, "ZERO_CVR_DB", upstream::Encodings::All).await
    };
    match checking.await {
        Err(error @ upstream::Error::Configuration { .. }) => Err(error.into()),
        _ => Ok(()),
    }
}

fn options(node: &Node<'_>, cvr: Address, writer: &Writer, copy: &Description) -> views::Options {
    let config = node.config;
    let path: PathBuf = writer.path().to_owned();
    let connector: views::store::Connector = Arc::new(move || {
        let cvr = cvr.clone();
        Box::pin(async move {
            let unopened = |e: upstream::Error| Unopened { entry: e.entry(), message: e.to_string() };
            upstream::connect_pooled(&cvr, "zero-cvr").await.map_err(unopened)
        })
    });
    let shard = format!("{}_{}", config.app.id, config.app.shard_num);
    views::Options {
        clients_table: format!("{shard}.clients"),
        mutations_table: format!("{shard}.mutations"),
        permissions_table: format!("{}.permissions", config.app.id),
        client_queries: config.engine.client_queries,
        cvr_schema: format!("{shard}/cvr"),
        cvr: connector,
        cvr_connections_max: config.cvr.connections_max,
        copy: Copy { id: copy.replica_id.clone(), version: copy.initial_version },
        is_alone: config.role == Role::SingleNode,
        memory_bytes: crate::memory::limit(),
        cvr_purge_hours: i32::try_from(config.cvr.inactivity_threshold.as_secs() / 3600).unwrap_or(i32::MAX).max(1),
        hydrators: config.engine.threads,
        spool_folder: path.parent().map_or_else(|| PathBuf::from("."), Path::to_owned),
        open_reader: Arc::new(move || replica::Reader::open(&path)),
        schema: writer.schema(),
        transformer: Arc::clone(&node.transformer),
        revalidate: config.auth.revalidate_interval,
        retransform: config.auth.retransform_interval,
        metrics: node.view_metrics.clone(),
    }
}

/// Why the views cannot go on. Never, if they end as they were told to: the node then finishes by itself.
pub async fn failed(ended: tokio::sync::oneshot::Receiver<Ending>) -> String {
    match ended.await {
        Ok(Ending::Failed(reason)) => reason,
        Ok(Ending::Drained) => std::future::pending().await,
        Err(_) => "their thread panicked".to_owned(),
    }
}
