//! The composition root of a single node: builds the parts, joins them, and owns their end.
//!
//! ```text
//! upstream --copy/stream--> replicate --apply--> replica --batches--> views --frames--> gateway
//! ```
//!
//! A replica that can no longer be continued is rebuilt in place: clients are sent away politely, everything is taken down, and
//! the parts are built again over a fresh copy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gateway::Server;
use replica::{Identity, Replica, Writer};
use rows::Version;
use tokio::sync::watch;
use tracing::{info, warn};
use upstream::Address;

use crate::admin::Statz;
use crate::change_log::Opened;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::{change_log, copy, options, replicate};

/// How a life of the parts ended.
enum Life {
    /// The stop signal.
    Over,
    /// The replica must be rebuilt.
    Reset,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<()> {
    let stop = stop_signal().context("listen for signals")?;
    loop {
        match live(&config, stop.clone()).await? {
            Life::Over => return Ok(()),
            Life::Reset => {
                if !config.replica.auto_reset {
                    bail!(
                        "the replica must be rebuilt and ZERO_AUTO_RESET is false: delete {} to do it",
                        config.replica.file.display()
                    );
                }
                discard(&config.replica.file)?;
            }
        }
    }
}

async fn live(config: &Config, stop: watch::Receiver<bool>) -> Result<Life> {
    let started = Instant::now();
    let metrics = Metrics::new(&config.server_version, "single-node")?;
    let view_metrics = views::metrics::Metrics::register(&metrics.registry)?;
    let facts = [("version", &config.server_version), ("taskID", &config.task_id)];
    let facts = facts.into_iter().map(|(name, value)| (name.to_owned(), value.as_str().into())).collect();
    let status =
        Statz::default().with_own_groups(facts, config.replica.file.clone(), metrics.registry.clone()).into_status();
    let server = Server::build(options::gateway(config), metrics.registry.clone(), status).await?;
    let (address, gate, transformer) = (server.address(), server.gate(), server.transformer());
    info!(%address, "listening; not ready yet");
    let (shut, mut shutting) = watch::channel(false);
    let serving = tokio::spawn(server.run(async move {
        // An error means that the sender is gone, which is a reason to stop as well.
        let _ = shutting.wait_for(|on| *on).await;
    }));
    let parts = Parts { config, metrics, view_metrics, gate, transformer, stop };
    let life = parts.live(started).await;
    shut.send_replace(true);
    let outcome = serving.await.context("the server's task failed")?;
    if matches!(life, Ok(Life::Over)) {
        info!(graceful = outcome.is_graceful, "stopped");
    }
    life
}

/// What one life is built from.
struct Parts<'a> {
    config: &'a Config,
    metrics: Metrics,
    view_metrics: views::metrics::Metrics,
    gate: gateway::Gate,
    transformer: Arc<dyn views::api::Transformer>,
    stop: watch::Receiver<bool>,
}

impl Parts<'_> {
    async fn live(self, started: Instant) -> Result<Life> {
        let mut stop = self.stop.clone();
        let source = options::upstream(self.config)?;
        let opened = tokio::select! {
            opened = self.replica(&source) => opened,
            _ = stop.wait_for(|on| *on) => return Ok(Life::Over),
        };
        let (writer, copy) = match opened {
            Err(error) if is_unusable(&error) => return Ok(reset(&format!("{error:#}"))),
            opened => opened?,
        };
        let initial = copy.version;
        let owner = changes::Owner { id: self.config.task_id.clone(), address: String::new() };
        let opened = tokio::select! {
            opened = self.change_log(&owner, initial, writer) => opened?,
            _ = stop.wait_for(|on| *on) => return Ok(Life::Over),
        };
        let (log, stored, writer) = match opened {
            (Opened::Ready { log, last }, writer) => (*log, last, writer),
            (Opened::Reset(reason), _) => return Ok(reset(&reason)),
        };
        let views = tokio::select! {
            views = self.views(&writer, copy) => views?,
            _ = stop.wait_for(|on| *on) => return Ok(Life::Over),
        };
        self.gate.open(Some(views.handle));
        info!(after_ms = started.elapsed().as_millis() as u64, version = %writer.version(), "ready");
        let start = replicate::Start { source, initial, writer, log, stored };
        tokio::select! {
            reason = replicate::run(start, views.batches, self.metrics.clone()) => Ok(reset(&reason?)),
            reason = views.ended => bail!("the views ended: {}", reason.unwrap_or_else(|_| "their thread panicked".into())),
            _ = stop.wait_for(|on| *on) => Ok(Life::Over),
        }
    }

    /// The writer of a usable replica, made by an initial copy if there is none, and that copy.
    async fn replica(&self, source: &upstream::Options) -> Result<(Writer, views::store::Copy)> {
        let path = &self.config.replica.file;
        let identity = Identity { app: self.config.app.id.clone(), shard: self.config.app.shard_num };
        let opened = match Replica::open(path, &identity)? {
            replica::Opened::Usable(replica) => replica,
            replica::Opened::Missing => {
                copy::run(source, path, &identity).await?;
                match Replica::open(path, &identity)? {
                    replica::Opened::Usable(replica) => replica,
                    replica::Opened::Missing => bail!("the initial copy left no replica at {}", path.display()),
                }
            }
        };
        let description = opened.description();
        let copy = views::store::Copy { id: description.replica_id.clone(), version: description.initial_version };
        Ok((opened.writer()?, copy))
    }

    async fn change_log(&self, owner: &changes::Owner, initial: Version, writer: Writer) -> Result<(Opened, Writer)> {
        let options = options::changes(self.config)?;
        await_database("ZERO_CHANGE_DB", &options.address).await?;
        change_log::open(&options, owner, initial, writer).await
    }

    async fn views(&self, writer: &Writer, copy: views::store::Copy) -> Result<views::Started> {
        let cvr: Address = self.config.cvr.db.expose().parse().context("ZERO_CVR_DB")?;
        await_database("ZERO_CVR_DB", &cvr).await?;
        let path: PathBuf = writer.path().to_owned();
        let connector: views::store::Connector = Arc::new(move || {
            let cvr = cvr.clone();
            Box::pin(async move { upstream::connect(&cvr, "zero-cvr").await.map_err(|e| e.to_string()) })
        });
        let shard = format!("{}_{}", self.config.app.id, self.config.app.shard_num);
        views::start(views::Options {
            clients_table: format!("{shard}.clients"),
            mutations_table: format!("{shard}.mutations"),
            cvr_schema: format!("{shard}/cvr"),
            cvr: connector,
            cvr_connections_max: 2,
            copy,
            memory_bytes: None,
            cvr_purge_hours: i32::try_from(self.config.cvr.inactivity_threshold.as_secs() / 3600)
                .unwrap_or(i32::MAX)
                .max(1),
            hydrators: self.config.engine.threads,
            open_reader: Arc::new(move || replica::Reader::open(&path)),
            schema: writer.schema(),
            transformer: Arc::clone(&self.transformer),
            revalidate: self.config.auth.revalidate_interval,
            retransform: self.config.auth.retransform_interval,
            metrics: self.view_metrics.clone(),
        })
        .await
        .map_err(anyhow::Error::msg)
    }
}

/// Whether a replica of ours is there but cannot be used.
fn is_unusable(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(replica::Error::Resync { .. }))
}

fn reset(reason: &str) -> Life {
    warn!(reason, "the replica will be rebuilt");
    Life::Reset
}

/// Waits until a database answers; gives up at once on what waiting cannot mend.
async fn await_database(what: &str, address: &Address) -> Result<()> {
    let mut pause = Duration::from_millis(100);
    loop {
        match upstream::connect(address, "zero-start").await {
            Ok(_) => return Ok(()),
            Err(error @ upstream::Error::Configuration { .. }) => return Err(error).with_context(|| what.to_owned()),
            Err(error) => warn!(%error, retry_ms = pause.as_millis() as u64, "{what} is not there yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Deletes a replica that was found to be ours and unusable.
fn discard(file: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut path = file.as_os_str().to_owned();
        path.push(suffix);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("delete {}", Path::new(&path).display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Becomes true at SIGTERM or SIGINT.
fn stop_signal() -> std::io::Result<watch::Receiver<bool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM: draining"),
            _ = interrupt.recv() => info!("SIGINT: draining"),
        }
        sender.send_replace(true);
        // A second signal means now.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        warn!("second signal: exiting at once");
        std::process::exit(i32::from(crate::config::exit::ERROR));
    });
    Ok(receiver)
}
