//! The operator put together: client, endpoints, Lease, watches, controllers; and its end.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crds::ZeroCache;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use kube::core::GroupVersionKind;
use kube::runtime::controller::{Config as ControllerConfig, Error as ControllerError, ReconcileRequest};
use kube::runtime::reflector::{self, ObjectRef, store::Writer};
use kube::runtime::{WatchStreamExt as _, applier, watcher};
use kube::{Api, Client, Resource, discovery};
use prometheus::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::controller::{Context, Guarded, reconcile, retry};
use crate::lease::{Election, Loss, Timing};
use crate::metrics::Metrics;
use crate::observe::clock::Clock;
use crate::observe::gather::Sources;
use crate::observe::kept::Keeper;
use crate::observe::kinds::Kind;
use crate::observe::outside::{Key, Outside, Timing as OutsideTiming};
use crate::observe::wakes::{Wake, Wakes};
use crate::observe::watches::{PAGE, Watching, explain};
use crate::observe::world::Scope;
use crate::report::{Events, Series};
use crate::server::{self, Pages};
use crate::settings::Settings;

/// Resources reconciled at the same time.
const CONCURRENCY: u16 = 16;
/// What is under way may be finished for so long after the stop signal.
const STOP_WITHIN: Duration = Duration::from_secs(20);
const CRD_ASKED_EVERY: Duration = Duration::from_secs(2);

/// Why the operator cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("find the cluster: {0}")]
    Configuration(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("listen on {address}: {source}")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("{0}; stopping at once, for two operators must not write at the same time")]
    Lost(#[from] Loss),
    #[error("{0} ended, which it must not")]
    Ended(&'static str),
}

/// Runs until the stop signal.
pub async fn run(settings: Settings) -> Result<(), Failure> {
    let mut stop = stop_signal();
    let registry = Registry::new();
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    let metrics = Metrics::register(&registry)?;
    let client = Client::try_default().await.map_err(|error| Failure::Configuration(Box::new(error)))?;
    let address = settings.metrics_addr;
    let listener = server::bind(address).await.map_err(|source| Failure::Listen { address, source })?;
    let is_ready = Arc::new(AtomicBool::new(false));
    let series = Series::default();
    let mut background = JoinSet::new();
    background
        .spawn(server::serve(listener, Pages { registry, series: series.clone(), is_ready: Arc::clone(&is_ready) }));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %address, "operator started");
    tokio::select! {
        () = wait_for_kind(&client, &metrics) => {}
        _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
    }
    // Standing by is all that can be asked of one that waits for the Lease.
    is_ready.store(true, Ordering::Relaxed);
    let name = settings.pod_name.clone().unwrap_or_else(|| "zero-cache-operator".to_owned());
    let holder = format!("{name}_{:08x}", rand::random::<u32>());
    let mut election = settings.leader_election.then(|| {
        Election::new(client.clone(), settings.lease_namespace(), &settings.lease_name, holder, Timing::default())
    });
    if let Some(election) = &mut election {
        tokio::select! {
            () = election.acquire() => {}
            _ = stop.wait_for(|stopped| *stopped) => return Ok(()),
        }
    }
    tracing::info!("this operator reconciles");
    metrics.leader.set(1);
    let ended = lead(&settings, client, &metrics, &series, &is_ready, &mut election, stop).await;
    metrics.leader.set(0);
    is_ready.store(false, Ordering::Relaxed);
    if ended.is_ok()
        && let Some(election) = &mut election
    {
        election.release().await;
    }
    ended
}

/// Reconciles until the stop signal, or until the Lease is lost.
async fn lead(
    settings: &Settings,
    client: Client,
    metrics: &Metrics,
    series: &Series,
    is_ready: &AtomicBool,
    election: &mut Option<Election>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let mut parts = Parts::start(settings, client, metrics, series).await;
    let lease = async {
        match election {
            Some(election) => election.hold().await,
            None => std::future::pending().await,
        }
    };
    let ready = async {
        loop {
            // One namespace that cannot be watched does not stop the others; its resources say so.
            let has_resources = parts.stores.iter().any(|store| store.wait_until_ready().now_or_never().is_some());
            is_ready.store(parts.sources.world.is_of_use() && has_resources, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    tokio::pin!(lease);
    tokio::select! {
        loss = &mut lease => return Err(loss.into()),
        () = ready => {}
        _ = parts.background.join_next() => return Err(Failure::Ended("a watch")),
        _ = parts.controllers.join_next() => return Err(Failure::Ended("a controller")),
        _ = stop.wait_for(|stopped| *stopped) => {}
    }
    tracing::info!("stopping");
    parts.stop.send_replace(true);
    let finished = async { while parts.controllers.join_next().await.is_some() {} };
    tokio::select! {
        loss = lease => return Err(loss.into()),
        ended = tokio::time::timeout(STOP_WITHIN, finished) => match ended {
            Ok(()) => tracing::info!("stopped; nothing was left half-done"),
            Err(_) => tracing::warn!("stopped in the middle of a reconcile; the next operator goes on from there"),
        },
    }
    Ok(())
}

/// What runs while this operator leads. Dropping it ends everything.
struct Parts {
    sources: Sources,
    stores: Vec<reflector::Store<Guarded>>,
    background: JoinSet<()>,
    controllers: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Parts {
    async fn start(settings: &Settings, client: Client, metrics: &Metrics, series: &Series) -> Parts {
        let namespaces = settings.namespaces();
        let scopes: Vec<Scope> = match namespaces.is_empty() {
            true => vec![None],
            false => namespaces.into_iter().map(Some).collect(),
        };
        let (wakes, queues) = Wakes::new(&scopes);
        let (outside, changes) = Outside::start(OutsideTiming::default());
        let sources = Sources {
            client: client.clone(),
            installation: settings.installation(),
            clock: Arc::new(Clock::default()),
            world: Arc::default(),
            secrets: Arc::default(),
            rivals: Arc::default(),
            names: Arc::default(),
            keeper: Arc::new(Keeper::new(&settings.pod_namespace)),
            outside,
            wakes: wakes.clone(),
        };
        // Ages are wrong by as much as the clocks differ until it answers.
        sources.clock.ask(&client).await;
        let mut background = JoinSet::new();
        let (clock, client_of_clock) = (Arc::clone(&sources.clock), client.clone());
        background.spawn(async move { clock.keep(client_of_clock).await });
        let watching = Watching {
            client: client.clone(),
            world: Arc::clone(&sources.world),
            secrets: Arc::clone(&sources.secrets),
            wakes: wakes.clone(),
            metrics: metrics.clone(),
        };
        for scope in &scopes {
            for kind in Kind::ALL {
                if kind.is_optional() {
                    background.spawn(watching.clone().keep_optional(kind, scope.clone()));
                } else {
                    sources.world.expect(kind, scope);
                    background.spawn(watching.clone().keep(kind, scope.clone()));
                }
            }
        }
        let instance = settings.pod_name.clone();
        let events = Events::new(client.clone(), instance);
        let context = Arc::new(Context::new(client.clone(), sources.clone(), metrics.clone(), events));
        let (stop, stopped) = watch::channel(false);
        let mut controllers = JoinSet::new();
        let mut stores = Vec::new();
        for (scope, queue) in queues {
            let (store, writer) = reflector::store::<Guarded>();
            stores.push(store.clone());
            let caches = Caches { client: client.clone(), context: Arc::clone(&context), wakes: wakes.clone(), scope };
            background.spawn(caches.follow(writer));
            controllers.spawn(control(store, queue, Arc::clone(&context), stopped.clone()));
        }
        series.follow(stores.clone());
        background.spawn(async move {
            let mut changes = changes;
            while let Some(key) = changes.next().await {
                wakes.send([key]).await;
            }
        });
        Parts { sources, stores, background, controllers, stop }
    }
}

/// Reconciles the resources of one scope until the stop signal, and finishes what is under way.
async fn control(
    store: reflector::Store<Guarded>,
    mut queue: mpsc::Receiver<Wake>,
    context: Arc<Context>,
    mut stopped: watch::Receiver<bool>,
) {
    let all = store.clone();
    let requests = stream::poll_fn(move |task| queue.poll_recv(task))
        .flat_map(move |wake| {
            let references: Vec<ObjectRef<Guarded>> = match wake {
                Wake::One(key) => vec![ObjectRef::new(&key.name).within(&key.namespace)],
                Wake::All => all.state().iter().map(|cache| ObjectRef::from_obj(&**cache)).collect(),
            };
            stream::iter(references)
        })
        .map(|reference| Ok::<_, Infallible>(ReconcileRequest::from(reference)))
        .take_until(async move {
            // The sender gone means the same.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        });
    let config = ControllerConfig::default().concurrency(CONCURRENCY);
    applier(|cache, context| Box::pin(reconcile(cache, context)), retry, context, store, requests, config)
        .for_each(|result| async move {
            // Failures of reconciles are told of where they happen; a resource that is gone is nothing to tell of.
            if let Err(ControllerError::QueueError(_) | ControllerError::RunnerError(_)) = result {
                tracing::error!("the controller's queue failed");
            }
        })
        .await;
}

/// The resources of one scope.
struct Caches {
    client: Client,
    context: Arc<Context>,
    wakes: Wakes,
    scope: Scope,
}

impl Caches {
    /// Keeps the store as the API server has it, and wakes a resource when something was asked of it: what the operator itself
    /// writes into the status is no news.
    async fn follow(self, mut writer: Writer<Guarded>) {
        let api: Api<Guarded> = match &self.scope {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default().page_size(PAGE)).default_backoff());
        let mut asked: HashMap<Key, u64> = HashMap::new();
        let mut listed: BTreeSet<Key> = BTreeSet::new();
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event.modify(|cache| cache.meta_mut().managed_fields = None),
                Err(error) => {
                    self.context.metrics.watch_restarts.with_label_values(&["ZeroCache"]).inc();
                    let (_, text) = explain(&error);
                    tracing::warn!(kind = "ZeroCache", namespace = self.scope, error = text, "a watch was cut off");
                    continue;
                }
            };
            writer.apply_watcher_event(&event);
            match &event {
                watcher::Event::Init => listed.clear(),
                watcher::Event::InitApply(cache) => {
                    let (key, asks) = asks(cache);
                    asked.insert(key.clone(), asks);
                    // Woken once the store has all of them.
                    listed.insert(key);
                }
                watcher::Event::InitDone => {
                    let gone: Vec<Key> = asked.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                    for key in gone {
                        asked.remove(&key);
                        self.context.forget(&key).await;
                    }
                    self.wakes.send(std::mem::take(&mut listed)).await;
                }
                watcher::Event::Apply(cache) => {
                    let (key, asks) = asks(cache);
                    self.context.caught_up(&key, cache.meta().resource_version.as_deref());
                    if asked.insert(key.clone(), asks) != Some(asks) {
                        self.wakes.send([key]).await;
                    }
                }
                watcher::Event::Delete(cache) => {
                    let (key, _) = asks(cache);
                    asked.remove(&key);
                    self.context.forget(&key).await;
                }
            }
        }
    }
}

/// A hash of everything in a resource but its status.
fn asks(cache: &Guarded) -> (Key, u64) {
    let metadata = cache.meta();
    let key = Key {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
    };
    let mut hasher = DefaultHasher::new();
    metadata.uid.hash(&mut hasher);
    metadata.generation.hash(&mut hasher);
    metadata.labels.hash(&mut hasher);
    metadata.annotations.hash(&mut hasher);
    metadata.finalizers.hash(&mut hasher);
    (key, hasher.finish())
}

/// Waits until the cluster serves the resource.
async fn wait_for_kind(client: &Client, metrics: &Metrics) {
    let wanted = GroupVersionKind::gvk(&ZeroCache::group(&()), &ZeroCache::version(&()), &ZeroCache::kind(&()));
    let mut was_told = false;
    loop {
        match discovery::pinned_kind(client, &wanted).await {
            Ok(_) => {
                metrics.crd_missing.set(0);
                return;
            }
            Err(error) => {
                metrics.crd_missing.set(1);
                if !was_told {
                    let error = error.to_string();
                    tracing::warn!(error, "the ZeroCache kind is not installed; apply the chart zero-cache-crds");
                    was_told = true;
                }
            }
        }
        tokio::time::sleep(CRD_ASKED_EVERY).await;
    }
}

/// Becomes true with SIGTERM or SIGINT.
fn stop_signal() -> watch::Receiver<bool> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            tracing::error!("signals cannot be received; only a kill stops this process");
            return std::future::pending().await;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        sender.send_replace(true);
        // Kept so that the receivers see the value and not its end.
        std::future::pending::<()>().await;
    });
    receiver
}
