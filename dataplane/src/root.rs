//! The composition root: builds the parts of a node's role, joins them, and owns their end.
//!
//! ```text
//! upstream --copy/stream--> manager --change log--> feed --batches--> views --frames--> gateway
//!                              |                     ^
//!                              +--change stream--> follower (on other nodes)
//! ```
//!
//! A replica that can no longer be continued is rebuilt in place: clients are sent away politely, everything is taken down, and
//! the parts are built again over a new replica.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fault::Backoff;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::admin::Statz;
use crate::admin_port::AdminPort;
use crate::config::{Config, Role};
use crate::metrics::Metrics;
use crate::node::{Anew, Life, Node};
use crate::status::Status;
use crate::stop::Stop;
use crate::stream_tls::StreamTls;
use crate::{folder, follower, manager, options};

/// Between two lines about what a person has to do.
const REMINDER: Duration = Duration::from_secs(60);

/// A replica that had to be made anew and is used for so long has nothing to do with what follows.
const SETTLED: Duration = Duration::from_secs(600);

/// Between rebuilt replicas of which none was used for long; probes get no answer meanwhile.
const REBUILDS: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(20));

/// Before a replica is fetched from another process once more, when what was fetched did not do.
const FETCHES: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(20));

/// For a standby to see that the log has no owner any more, and to become it.
const SUCCESSION: Duration = Duration::from_secs(1);

/// How a life of the parts begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// With the replica that is there, or one made anew.
    With(Anew),
    /// Not at all: only a person may decide that the replica is made anew. The ports say so.
    Never,
}

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The stop signal.
    Stopped,
    /// Another process replicates now.
    SteppedDown,
}

/// Runs until SIGTERM or SIGINT, or until another process takes over.
pub async fn run(config: Config) -> Result<Ending> {
    let stop = Stop::listen(config.network.shutdown_grace).context("listen for signals")?;
    let ending = lives(&config, &stop).await;
    stop.tell();
    ending
}

/// One life after the other, as long as a replica can be made anew.
async fn lives(config: &Config, stop: &Stop) -> Result<Ending> {
    let tls = StreamTls::open(config)?;
    folder::make(&config.replica.file)?;
    // A node that follows only gets what the replication-manager has already.
    folder::clear(&config.replica.file, config.replica.auto_reset || config.role == Role::ViewSyncer)?;
    let status = Status::default();
    let (mut pacing, mut fetching) = (REBUILDS, FETCHES);
    let (mut begin, mut made_anew, mut fetched) = (Begin::With(Anew::Any), None::<Instant>, None::<Instant>);
    loop {
        match live(config, &tls, stop, &status, begin).await? {
            Life::Over => return Ok(Ending::Stopped),
            Life::SteppedDown => return Ok(Ending::SteppedDown),
            Life::Reset(anew) => {
                // A node that follows only gets what the replication-manager has already.
                if !config.replica.auto_reset && config.role != Role::ViewSyncer {
                    begin = Begin::Never;
                    continue;
                }
                discard(&config.replica.file)?;
                status.discarded();
                if config.change_stream.stands_by {
                    // Another process may take over now, and then has what is needed here.
                    wait(stop, SUCCESSION).await;
                }
                // What was restored just now had the same fault: the backup has it as well.
                let is_again = made_anew.is_some_and(|at| at.elapsed() < SETTLED);
                made_anew = Some(Instant::now());
                if is_again {
                    // Upstream is not to be copied as fast as it can be when that mends nothing.
                    wait(stop, pacing.pause()).await;
                } else {
                    pacing.succeeded();
                }
                begin = Begin::With(if is_again { Anew::Source } else { anew });
            }
            // So does one that stands by.
            Life::Stale => {
                discard(&config.replica.file)?;
                status.discarded();
                if fetched.replace(Instant::now()).is_some_and(|at| at.elapsed() < SETTLED) {
                    // What was fetched did not do either: the other process is not to be worn out.
                    wait(stop, fetching.pause()).await;
                } else {
                    fetching.succeeded();
                }
                begin = Begin::With(Anew::Any);
            }
        }
    }
}

/// Ends early at the stop signal.
async fn wait(stop: &Stop, pause: Duration) {
    // Neither is a failure.
    let _ = tokio::time::timeout(pause, stop.asked()).await;
}

/// One life of all parts.
async fn live(config: &Config, tls: &StreamTls, stop: &Stop, status: &Status, begin: Begin) -> Result<Life> {
    let role = config.role.name();
    let metrics = Metrics::new(&config.server_version, role)?;
    let stream_metrics = streamer::Metrics::register(&metrics.registry)?;
    let (token, former_tokens) = options::tokens(config)?;
    let facts = [("version", config.server_version.as_str()), ("taskID", &config.task_id), ("role", role)];
    let facts = facts.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let node_facts = {
        let status = status.clone();
        let subscribers = (config.role != Role::ViewSyncer).then(|| stream_metrics.subscribers.clone());
        move || std::future::ready(Ok(status.facts(role, env!("CARGO_PKG_VERSION"), subscribers.as_ref())))
    };
    let statz = Statz::default().group("node", node_facts).with_own_groups(
        facts,
        config.replica.file.clone(),
        metrics.registry.clone(),
    );
    let status_page = options::status_page(config, statz.into_status(), metrics.failed_logins.clone());
    let liveness = port::Liveness::default();
    let pages = options::client_pages(config, metrics.registry.clone(), status_page.clone());
    let pages = pages.with_liveness(liveness.clone());
    let crud = crate::crud::options(config, &metrics.registry)?;
    let client_options = gateway::Options { crud, ..options::gateway(config) };
    let clients = gateway::Server::build(client_options, &metrics.registry, pages).await?;
    let (client_gate, transformer) = (clients.gate(), clients.transformer());
    let admin_port = AdminPort::open(config, &metrics.registry, &status_page, &client_gate, &liveness).await?;
    info!(address = %clients.address(), "listening; not ready yet");
    let followers = match config.role {
        Role::ViewSyncer => None,
        Role::SingleNode | Role::ReplicationManager => {
            let options = options::stream_port(config, token.clone(), tls.certificate.clone());
            let options = streamer::ServerOptions { liveness: liveness.clone(), ..options };
            let registry = metrics.registry.clone();
            let server = streamer::Server::build(options, registry, stream_metrics.clone(), status_page).await?;
            info!(address = %server.address(), "listening for other nodes");
            Some(server)
        }
    };
    let (finish, finishing) = watch::channel(false);
    let node = Node {
        config,
        backup_metrics: backup::metrics::Metrics::register(&metrics.registry)?,
        view_metrics: views::metrics::Metrics::register(&metrics.registry)?,
        metrics,
        status: status.clone(),
        stream_metrics,
        gate: client_gate,
        transformer,
        stream: followers.as_ref().map(streamer::Server::gate),
        token,
        former_tokens,
        authority: tls.authority.clone(),
        anew: if let Begin::With(anew) = begin { anew } else { Anew::Any },
        finish: finishing,
        liveness,
        stop: stop.clone(),
        started: Instant::now(),
    };
    let ports = Ports::open(
        clients,
        followers,
        &node.gate,
        node.stream.as_ref(),
        config.network.keepalive_timeout,
        stop.clone(),
    );
    let ends = async {
        let life = match config.role {
            _ if begin == Begin::Never => Ok(idle(&node).await),
            Role::ViewSyncer => follower::live(&node).await,
            Role::SingleNode => manager::live(&node, true).await,
            Role::ReplicationManager => manager::live(&node, false).await,
        };
        if matches!(life, Ok(Life::Over)) {
            info!("stopped")
        }
        life
    };
    let life = ports.serve_until(ends, &finish).await;
    if let Some(admin_port) = admin_port {
        admin_port.close().await;
    }
    life
}

/// Waits for the stop signal with ports that answer and are never ready, so that whoever operates the node can see why.
async fn idle(node: &Node<'_>) -> Life {
    loop {
        error!(
            "the replica must be rebuilt and ZERO_AUTO_RESET is false: stop the node and delete {} to do it",
            node.config.replica.file.display()
        );
        if node.unless_finishing(tokio::time::sleep(REMINDER)).await.is_none() {
            return Life::Over;
        }
    }
}

/// The servers of the two ports, running.
struct Ports {
    clients: JoinHandle<gateway::Outcome>,
    followers: Option<JoinHandle<streamer::Outcome>>,
    stop: Stop,
    /// Sends clients away.
    leave: watch::Sender<bool>,
    /// Sends followers away.
    close: watch::Sender<bool>,
}

impl Ports {
    fn open(
        clients: gateway::Server,
        followers: Option<streamer::Server>,
        gate: &gateway::Gate,
        stream: Option<&streamer::Gate>,
        keepalive_timeout: Option<Duration>,
        stop: Stop,
    ) -> Ports {
        let (leave, mut leaving) = watch::channel(false);
        let (close, mut closing) = watch::channel(false);
        let (gate, stream, asked) = (gate.clone(), stream.cloned(), stop.clone());
        let clients = tokio::spawn(clients.run(async move {
            tokio::select! {
                () = asked.asked() => {}
                _ = leaving.wait_for(|on| *on) => {}
                () = silence(&gate, keepalive_timeout) => asked.ask(),
            }
            // Followers look for a successor while clients are still led away.
            if let Some(stream) = stream {
                stream.set(streamer::Role::Draining);
            }
        }));
        let followers = followers.map(|server| {
            tokio::spawn(server.run(async move {
                // A sender that is gone is a reason to stop as well.
                let _ = closing.wait_for(|on| *on).await;
            }))
        });
        Ports { clients, followers, stop, leave, close }
    }

    /// Serves while `life` lasts. When clients were sent away by the stop signal, it is told to finish.
    async fn serve_until(
        mut self,
        life: impl Future<Output = Result<Life>>,
        finish: &watch::Sender<bool>,
    ) -> Result<Life> {
        tokio::pin!(life);
        let (life, outcome) = tokio::select! {
            life = &mut life => {
                self.leave.send_replace(true);
                (life, (&mut self.clients).await)
            }
            outcome = &mut self.clients => {
                finish.send_replace(true);
                (life.await, outcome)
            }
        };
        let outcome = outcome.context("the task that serves clients failed")?;
        self.close.send_replace(true);
        if let Some(followers) = self.followers {
            followers.await.context("the task that serves other nodes failed")?;
        }
        if !outcome.is_graceful {
            self.stop.give_up("leading clients away");
        }
        life
    }
}

/// Completes when a load balancer that asked for `/keepalive` has stopped asking for so long.
async fn silence(gate: &gateway::Gate, timeout: Option<Duration>) {
    let Some(timeout) = timeout else { return std::future::pending().await };
    loop {
        tokio::time::sleep(timeout / 4).await;
        if gate.last_keepalive().is_some_and(|last| last.elapsed() >= timeout) {
            warn!(timeout_ms = timeout.as_millis() as u64, "nobody asks for /keepalive any more: draining");
            return;
        }
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
