//! One resource at a time: observe, plan, write the status, apply, act, tell.
//!
//! The status is written first and only over the version that was planned from, so no effect comes before its record and two
//! operators cannot both carry the same flow on. A reconcile that fails leaves the others alone; what lasts becomes a condition.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crds::ZeroCache;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action as Next;
use kube::{Client, Resource as _};

use crate::apply::{Applier, Memory};
use crate::error::{Category, Error};
use crate::metrics::{Metrics, outcome};
use crate::observe::gather::{Picture, Sources};
use crate::observe::outside::Key;
use crate::plan::{self, Action, Plan};
use crate::report::{self, Events};

/// A resource, or why it cannot be read.
pub type Guarded = DeserializeGuard<ZeroCache>;

/// A flow that moved on is looked at again after the watches had a moment to catch up.
const AT_ONCE: Duration = Duration::from_millis(50);
/// Until the first listings are through.
const LISTING: Duration = Duration::from_millis(250);
/// Failures that may pass by themselves are told of once there were so many in a row.
const TOLD_AFTER: u32 = 4;

pub struct Context {
    pub client: Client,
    pub sources: Sources,
    pub metrics: Metrics,
    pub events: Events,
    pub memory: Memory,
    written: Mutex<HashMap<Key, Written>>,
    failures: Mutex<HashMap<Key, Failure>>,
}

/// The resource as the API server returned it from our last write, while the watch has not shown it.
struct Written {
    /// Versions that the watch may still show.
    superseded: Vec<String>,
    cache: Arc<ZeroCache>,
}

#[derive(Clone, Debug)]
struct Failure {
    in_a_row: u32,
    category: Category,
    text: String,
    /// It was made a condition without planning.
    is_reported: bool,
}

impl Context {
    #[must_use]
    pub fn new(client: Client, sources: Sources, metrics: Metrics, events: Events) -> Context {
        Context {
            client,
            sources,
            metrics,
            events,
            memory: Memory::default(),
            written: Mutex::default(),
            failures: Mutex::default(),
        }
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<Key, Failure>> {
        self.failures.lock().expect("nothing panics while it holds the lock")
    }

    fn written(&self) -> MutexGuard<'_, HashMap<Key, Written>> {
        self.written.lock().expect("nothing panics while it holds the lock")
    }

    /// The newer one of what the watch shows and what was written.
    fn latest(&self, key: &Key, shown: &ZeroCache) -> Arc<ZeroCache> {
        let mut all = self.written();
        let version = shown.metadata.resource_version.as_deref().unwrap_or_default();
        match all.get(key) {
            Some(written) if written.superseded.iter().any(|old| old == version) => Arc::clone(&written.cache),
            _ => {
                all.remove(key);
                Arc::new(shown.clone())
            }
        }
    }

    fn remember(&self, key: &Key, before: &ZeroCache, after: Arc<ZeroCache>) {
        let mut all = self.written();
        let written =
            all.entry(key.clone()).or_insert_with(|| Written { superseded: Vec::new(), cache: Arc::clone(&after) });
        written.superseded.extend(before.metadata.resource_version.clone());
        written.cache = after;
    }

    /// The watch has shown a version: a copy of the same is not needed any longer.
    pub fn caught_up(&self, key: &Key, version: Option<&str>) {
        let mut all = self.written();
        if all.get(key).is_some_and(|written| written.cache.metadata.resource_version.as_deref() == version) {
            all.remove(key);
        }
    }

    /// What a person should read of earlier failures.
    fn lasting_failure(&self, key: &Key) -> Option<String> {
        let failures = self.failures();
        let failure = failures.get(key)?;
        (failure.category.is_persistent() || failure.in_a_row >= TOLD_AFTER).then(|| failure.text.clone())
    }

    /// A resource is gone.
    pub async fn forget(&self, key: &Key) {
        self.memory.forget_all(key);
        self.metrics.forget(&key.namespace, &key.name);
        self.written().remove(key);
        self.failures().remove(key);
        self.sources.forget(key).await;
    }
}

/// Looks at one resource; what it came to decides when it is looked at again.
pub async fn reconcile(guarded: Arc<Guarded>, context: Arc<Context>) -> Result<Next, Error> {
    let began = Instant::now();
    let key = key_of(&guarded);
    // On a task of its own: a fault of ours in one resource must not stop the others.
    let work = tokio::spawn(carry_out(Arc::clone(&guarded), key.clone(), Arc::clone(&context)));
    let result = work.await.unwrap_or_else(|error| Err(Error::Panicked(error.to_string())));
    context.metrics.reconcile_duration_seconds.observe(began.elapsed().as_secs_f64());
    match result {
        Ok(after) => {
            let label = if after == AT_ONCE || after == LISTING { outcome::REQUEUE } else { outcome::OK };
            context.metrics.reconciles.with_label_values(&[label]).inc();
            Ok(Next::requeue(after))
        }
        Err(error) => {
            context.metrics.reconciles.with_label_values(&[outcome::ERROR]).inc();
            context.metrics.reconcile_errors.with_label_values(&[error.category().label()]).inc();
            tracing::warn!(
                resource = %key,
                category = error.category().label(),
                error = error.to_string(),
                "reconcile failed"
            );
            note(&context, &key, &guarded, &error).await;
            Err(error)
        }
    }
}

/// When a failed reconcile is tried again.
#[must_use]
pub fn retry(guarded: Arc<Guarded>, error: &Error, context: Arc<Context>) -> Next {
    let failures = context.failures().get(&key_of(&guarded)).map_or(1, |failure| failure.in_a_row);
    Next::requeue(error.category().delay(failures, rand::random::<f64>()))
}

fn key_of(guarded: &Guarded) -> Key {
    let metadata = guarded.meta();
    Key { namespace: metadata.namespace.clone().unwrap_or_default(), name: metadata.name.clone().unwrap_or_default() }
}

/// Counts a failure. One that keeps anything from being planned becomes a condition here; the others do when they are planned
/// with.
async fn note(context: &Context, key: &Key, guarded: &Guarded, error: &Error) {
    let (category, text) = (error.category(), error.to_string());
    let is_news = {
        let mut failures = context.failures();
        let failure = failures.entry(key.clone()).or_insert_with(|| Failure {
            in_a_row: 0,
            category,
            text: text.clone(),
            is_reported: false,
        });
        failure.in_a_row = failure.in_a_row.saturating_add(1);
        let is_news = !failure.is_reported || failure.text != text;
        failure.category = category;
        failure.text.clone_from(&text);
        failure.is_reported = failure.is_reported || matches!(error, Error::Unobserved(_));
        is_news
    };
    if is_news && matches!(error, Error::Unobserved(_)) {
        let now = context.sources.clock.now();
        report::fault(&context.client, &context.events, key, guarded.meta(), report::Fault::Blind(&text), now).await;
    }
}

async fn carry_out(guarded: Arc<Guarded>, key: Key, context: Arc<Context>) -> Result<Duration, Error> {
    let shown = match &guarded.0 {
        Ok(shown) => shown,
        Err(invalid) => {
            broken(&context, &key, invalid).await;
            return Ok(Duration::from_secs(300));
        }
    };
    let cache = context.latest(&key, shown);
    let failure = context.lasting_failure(&key);
    let Some(picture) = context.sources.observe(&key, &cache, failure.clone()).await? else { return Ok(LISTING) };
    let Picture { observed, existing, losses, access, unseen } = picture;
    let planned = plan::plan(&cache, &observed);
    let Plan { objects, remove, actions, status, events, look_again_seconds } = planned;
    let mut writes = 0;
    let recorded = cache.status.clone().unwrap_or_default();
    let mut current = Arc::clone(&cache);
    if recorded != status {
        let written = report::write(&context.client, &key, &cache, &status).await;
        current = match written {
            Ok(written) => Arc::new(written),
            // It went away while it was planned for.
            Err(error) if error.category() == Category::Missing => return Ok(Duration::from_secs(30)),
            Err(error) => return Err(error),
        };
        context.remember(&key, &cache, Arc::clone(&current));
        report::count(&context.metrics, &key, &recorded, &status, observed.now.as_second());
        writes += 1;
    }
    for event in &events {
        tracing::info!(resource = %key, reason = event.reason, message = event.message, "event");
    }
    context.events.publish(&current.object_ref(&()), &events).await;
    let applier = Applier {
        client: &context.client,
        metrics: &context.metrics,
        memory: &context.memory,
        cache: &key,
        uid: cache.metadata.uid.as_deref().unwrap_or_default(),
        existing: &existing,
        unseen: &unseen,
        losses,
        keeper: &context.sources.keeper,
        access: access.as_ref(),
        secrets: &observed.secrets,
    };
    let mut outcome = Ok(());
    // What is outside must not come to be before there is something that holds it, and what releases it.
    let is_first = |action: &Action| matches!(action, Action::AddFinalizer | Action::KeepAccess);
    let (first, later): (Vec<_>, Vec<_>) = actions.into_iter().partition(is_first);
    for action in &first {
        writes += 1;
        applier.act(action, &current, &context.sources.outside).await?;
    }
    if let Some(objects) = objects {
        let (written, applied) = applier.apply(objects).await;
        writes += written.0;
        outcome = applied;
    }
    let (removed, result) = applier.remove(&remove).await;
    writes += removed.0;
    outcome = outcome.and(result);
    for action in &later {
        writes += 1;
        let acted = applier.act(action, &current, &context.sources.outside).await;
        // Once the resource is gone nobody looks for what was kept for it.
        if *action == Action::DiscardAccess {
            acted?;
        } else {
            outcome = outcome.and(acted);
        }
    }
    if outcome.as_ref().is_err_and(|error| error.category() == Category::Conflict) {
        context.sources.names.ask_again(&key);
    }
    outcome?;
    if writes == 0 {
        context.metrics.reconciles_unchanged.inc();
    }
    let had_failed = context.failures().remove(&key).is_some();
    Ok(match look_again_seconds {
        // What was told of is to be taken back.
        _ if had_failed && failure.is_some() => AT_ONCE,
        0 => AT_ONCE,
        seconds => Duration::from_secs(seconds).mul_f64(0.9 + 0.2 * rand::random::<f64>()),
    })
}

/// A document that this operator cannot read: told of, and left alone.
async fn broken(context: &Context, key: &Key, invalid: &kube::core::error_boundary::InvalidObject) {
    let text = format!("this version of the operator cannot read the resource: {}", invalid.error);
    let is_news = {
        let mut failures = context.failures();
        let told = Failure { in_a_row: 1, category: Category::Refused, text: text.clone(), is_reported: true };
        failures.insert(key.clone(), told).is_none_or(|before| before.text != text)
    };
    if is_news {
        tracing::warn!(resource = %key, error = invalid.error, "a resource cannot be read");
        let now = context.sources.clock.now();
        report::fault(&context.client, &context.events, key, &invalid.metadata, report::Fault::Broken(&text), now)
            .await;
    }
}
