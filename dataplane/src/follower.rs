//! A node that serves clients from another node's change stream. It never opens the replication slot or the change log.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use fault::{Backoff, Class, Recurrence};
use rows::Version;
use streamer::{Error, Event, Reservation, Subscriber, Welcome};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::feed::{self, Applied, CHANGES_PER_COMMIT_MAX, Commit, Feed};
use crate::metrics::Metrics;
use crate::node::{Anew, Life, Node, is_unusable, reset};
use crate::origin::{self, Origin};
use crate::readiness::Readiness;
use crate::route::Route;
use crate::status::{Standing, Status};
use crate::{opening, serving};

const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
/// A successor is there within this time, as a rule: for so long it is looked for at the same pace.
const HAND_OVER: Duration = Duration::from_secs(2);

/// Lives until everything is to be finished, or the replica must be made anew.
pub async fn live(node: &Node<'_>) -> Result<Life> {
    let mut route = Route::new(node)?;
    let prepared = match node.unless_finishing(prepare(node, &mut route)).await {
        None => return Ok(Life::Over),
        Some(Err(error)) if is_unusable(&error) => return Ok(reset(&format!("{error:#}"), Anew::Any)),
        Some(prepared) => prepared?,
    };
    let Origin { writer, copy, reservation } = prepared;
    let Some(views) = node.unless_finishing(serving::start(node, &writer, &copy)).await else { return Ok(Life::Over) };
    let views = views?;
    let _watched = serving::watch(node, &views);
    let readiness = Readiness {
        status: node.status.clone(),
        clients: node.gate.clone(),
        stream: None,
        unstored: Some(views.unflushed_since.clone()),
    };
    let version = writer.version();
    let mut feed = Feed::start(node, writer, Some(views.batches));
    let (connected, head) = watch::channel(None);
    let mut follower = Follower {
        route,
        initial: copy.initial_version,
        after: version,
        commits: feed.commits.clone(),
        applied: feed.applied.clone(),
        metrics: node.metrics.clone(),
        status: node.status.clone(),
        reservation,
        connected,
        retry: RETRY,
        recurrence: Recurrence::default(),
        heard: Instant::now(),
    };
    let followed = head.clone();
    let opening = opening::open(node, Some(views.handle), feed.applied.clone(), head);
    let life = {
        let following = follower.run();
        let failed = serving::failed(views.ended);
        // One that has followed is of use while its secrets are being changed.
        let readiness = readiness.tell(|| followed.borrow().is_none());
        tokio::pin!(opening, following, failed, readiness);
        let mut is_open = false;
        loop {
            tokio::select! {
                () = &mut opening, if !is_open => is_open = true,
                () = &mut readiness => {}
                reason = &mut following => break reset(&reason, Anew::Any),
                reason = feed.failed() => match reason? {
                    Some(reason) => break reset(&reason, Anew::Any),
                    None => bail!("the thread that applies changes ended"),
                },
                reason = &mut failed => bail!("the views ended: {reason}"),
                () = node.finishing() => break Life::Over,
            }
        }
    };
    drop(follower);
    if let Some(writer) = feed.finish(&node.stop).await? {
        feed::close(&node.stop, writer).await?;
    }
    Ok(life)
}

async fn prepare(node: &Node<'_>, route: &mut Route) -> Result<Origin> {
    match origin::local(&node.config.replica.file, &node.identity())? {
        Some(found) => Ok(found),
        None => origin::for_follower(node, route).await,
    }
}

struct Follower {
    route: Route,
    initial: Version,
    /// The last version handed on.
    after: Version,
    commits: mpsc::Sender<Commit>,
    applied: Applied,
    metrics: Metrics,
    status: Status,
    /// Dropped once this node streams.
    reservation: Option<Reservation>,
    /// Where upstream was, as far as the owner has been there.
    connected: watch::Sender<Option<Version>>,
    retry: Backoff,
    recurrence: Recurrence,
    /// When the manager was heard last.
    heard: Instant,
}

impl Follower {
    /// Follows until the replica must be made anew, and says why. The manager's absence is waited out, because clients are served
    /// meanwhile. Dropping the future loses nothing.
    async fn run(&mut self) -> String {
        let mut was_led_on = false;
        loop {
            let begun = Instant::now();
            let failure = self.follow().await;
            let class = self.stands(&failure);
            self.route.learn(&failure);
            let pause = self.pause();
            let retry_ms = pause.as_millis() as u64;
            match failure {
                Error::Reset { message } => return message,
                Error::Configuration { .. } => {
                    error!(error = %failure, remedy = failure.entry().remedy, retry_ms, "the change stream cannot go on; clients are served what is here");
                }
                _ if class == Class::Person => {
                    warn!(error = %failure, remedy = failure.entry().remedy, retry_ms, "the change stream is interrupted, and that may not pass by itself");
                }
                _ => warn!(error = %failure, retry_ms, "the change stream is interrupted, will retry"),
            }
            // Whoever says where the owner is knows it well, unless two of them send us back and forth.
            was_led_on = self.route.is_pointed() && !was_led_on;
            if !was_led_on {
                // An attempt that got no answer has waited enough.
                tokio::time::sleep_until(begun + pause).await;
            }
        }
    }

    /// Tells what keeps changes from arriving.
    fn stands(&mut self, failure: &Error) -> Class {
        let (message, entry) = (failure.to_string(), failure.entry());
        let class = self.recurrence.class(self.after.as_u64(), entry, &message);
        let attempts = self.recurrence.times();
        self.metrics.stands(class);
        let (position, remedy) = (self.after, entry.remedy);
        self.status.stands(Standing { class, position, message, remedy, attempts, since: SystemTime::now() });
        class
    }

    /// Before the next attempt. They grow only when no successor comes.
    fn pause(&mut self) -> Duration {
        if self.heard.elapsed() <= HAND_OVER {
            self.retry.succeeded();
        }
        self.retry.pause()
    }

    /// Follows one stream to its end.
    async fn follow(&mut self) -> Error {
        let options = match self.route.options().await {
            Ok(options) => options,
            Err(error) => return error,
        };
        // What was handed on is applied, or the node ends; so the stream continues from there.
        let (Welcome { head, .. }, mut subscriber) = match Subscriber::connect(&options, self.initial, self.after).await
        {
            Ok(connected) => connected,
            Err(error) => return error,
        };
        info!(after = %self.after, %head, "following the replication-manager");
        self.route.reached();
        self.reservation = None;
        // What an owner of an earlier version does not tell is taken from where its log ends.
        if !subscriber.is_told_abreast() {
            self.connected.send_replace(Some(head));
        }
        let _streaming = self.status.streaming();
        self.metrics.advances();
        self.status.advances();
        let acks = subscriber.acks();
        // What was applied before this stream began.
        acks.ack(self.applied.version());
        let acknowledge: Arc<dyn Fn(Version) + Send + Sync> = Arc::new(move |version| acks.ack(version));
        loop {
            let mut transactions = Vec::new();
            let mut changes = 0;
            let mut next = Some(subscriber.next().await);
            while let Some(event) = next {
                if event.is_ok() {
                    self.heard = Instant::now();
                }
                match event {
                    Ok(Event::Transactions(more)) => {
                        changes += more.iter().map(|t| t.changes.len()).sum::<usize>();
                        transactions.extend(more);
                    }
                    Ok(Event::Head { .. }) => {}
                    Ok(Event::Abreast { version }) => drop(self.connected.send_replace(Some(version))),
                    // What was collected comes again with the next stream.
                    Err(error) => return error,
                }
                next = if changes < CHANGES_PER_COMMIT_MAX { subscriber.try_next() } else { None };
            }
            let Some(version) = transactions.last().map(|t| t.version) else { continue };
            let bytes = version.as_u64().saturating_sub(self.after.as_u64());
            self.status.received(&transactions);
            let (stored, is_stored) = oneshot::channel();
            // Only what is stored is sent.
            let _ = stored.send(());
            let acknowledge = Arc::clone(&acknowledge);
            let commit = Commit { transactions: Arc::new(transactions), is_stored, acknowledge, bytes };
            self.metrics.replica_version_lag.add(i64::try_from(bytes).unwrap_or(i64::MAX));
            if self.commits.send(commit).await.is_err() {
                // The thread has ended; the caller sees why.
                std::future::pending::<()>().await;
            }
            self.after = version;
        }
    }
}
