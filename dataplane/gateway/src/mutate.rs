//! Mutations on their way: custom ones to the application's API server, CRUD ones to whoever applies them.
//!
//! Per client group one is in flight, of either kind, so that what one client does stays in order. Custom ones that arrive meanwhile
//! are combined into the next request per socket and credentials, as far as one request goes. Success says nothing to clients: they learn it from replication. Failure ends the
//! sockets concerned, whose clients resend what is unacknowledged; what else such a socket had waiting is dropped, because it would
//! arrive out of order.

mod answer;
mod crud;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use port::Tasks;
use protocol::error::{CallReason, ErrorBody, Failure, MutationId, PushFailed, ServerReason, preview};
use protocol::up::{MutationKind, Push};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use views::api::{ConnectionContext, ConnectionId};

use crate::api::{CALL_BYTES, CALL_ITEMS, CallError, Caller, Endpoint, Operation};
use crate::budget::Lease;
use crate::crud::CrudOptions;
use crate::metrics::Metrics;
use crate::registry::Registry;
use answer::Answer;
use crud::{Crud, Written};

/// On whose behalf mutations are pushed. A new one with every change of credentials.
#[derive(Debug, Default)]
pub(crate) struct PushContext {
    pub(crate) url: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) connection: Arc<ConnectionContext>,
}

/// A push waiting for its turn. Its first mutation says what all of them are.
struct Entry {
    kind: MutationKind,
    connection: ConnectionId,
    client_id: String,
    context: Arc<PushContext>,
    push: Push,
    size: usize,
    /// For its text, until the API server has answered.
    _memory: Lease,
}

#[derive(Default)]
struct Group {
    waiting: VecDeque<Entry>,
    bytes: usize,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pusher {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Option<Endpoint>,
    caller: Caller,
    crud: Option<Crud>,
    registry: Arc<Registry>,
    /// A group is here while its task runs.
    groups: Mutex<HashMap<String, Group>>,
    group_bytes_max: usize,
    /// Clean-ups in flight; more are dropped, the next acknowledgement covers them.
    cleanups: Arc<Semaphore>,
    tasks: Tasks,
    metrics: Metrics,
}

const CLEANUPS_MAX: usize = 64;

/// Pushes waiting for one group, however short they are.
const WAITING_MAX: usize = 20_000;

impl Pusher {
    pub(crate) fn new(
        endpoint: Option<Endpoint>,
        caller: Caller,
        crud: Option<CrudOptions>,
        registry: Arc<Registry>,
        group_bytes_max: usize,
        metrics: Metrics,
    ) -> Pusher {
        Pusher {
            inner: Arc::new(Inner {
                endpoint,
                caller,
                crud: crud.map(|options| Crud::new(options, metrics.clone())),
                registry,
                groups: Mutex::default(),
                group_bytes_max,
                cleanups: Arc::new(Semaphore::new(CLEANUPS_MAX)),
                tasks: Tasks::default(),
                metrics,
            }),
        }
    }

    /// Queues a push of the socket `connection`, which belongs to `group`. The error ends the socket.
    pub(crate) fn push(
        &self,
        group: &str,
        client_id: &str,
        connection: ConnectionId,
        context: &Arc<PushContext>,
        push: Push,
        memory: Lease,
    ) -> Result<(), ErrorBody> {
        if push.client_group_id != group {
            return Err(ErrorBody::invalid_push("the push is for another client group than the connection"));
        }
        let Some(kind) = push.mutations.first().map(|m| m.kind) else { return Ok(()) };
        self.check(kind, &push, context)?;
        self.inner.metrics.pushes.inc();
        if kind == MutationKind::Custom {
            self.inner.metrics.custom_mutations.inc_by(push.mutations.len() as u64);
        }
        let size = push.size();
        let (client_id, context) = (client_id.to_owned(), Arc::clone(context));
        let entry = Entry { kind, connection, client_id, context, push, size, _memory: memory };
        self.enqueue(group, entry)
    }

    /// Whether mutations of this kind have anywhere to go.
    fn check(&self, kind: MutationKind, push: &Push, context: &PushContext) -> Result<(), ErrorBody> {
        match kind {
            MutationKind::Crud if self.inner.crud.is_none() => {
                Err(ErrorBody::invalid_push("CRUD mutations are switched off (ZERO_ENABLE_CRUD_MUTATIONS)"))
            }
            MutationKind::Crud if push.mutations.iter().any(|mutation| mutation.kind != kind) => {
                Err(ErrorBody::invalid_push("a push has both CRUD and custom mutations"))
            }
            MutationKind::Crud => Crud::refusal(&context.connection).map_or(Ok(()), Err),
            MutationKind::Custom if self.inner.endpoint.is_none() => {
                Err(ErrorBody::invalid_push("custom mutations need a mutate URL (ZERO_MUTATE_URL), none is configured"))
            }
            MutationKind::Custom => Ok(()),
        }
    }

    fn enqueue(&self, group: &str, entry: Entry) -> Result<(), ErrorBody> {
        let mut groups = self.inner.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !groups.contains_key(group);
        let queue = groups.entry(group.to_owned()).or_default();
        let is_full = queue.bytes > 0 && queue.bytes + entry.size > self.inner.group_bytes_max;
        if is_full || queue.waiting.len() >= WAITING_MAX {
            return Err(ErrorBody::overloaded("too many mutations wait for their turn", 1_000, 30_000));
        }
        queue.bytes += entry.size;
        self.inner.metrics.push_queue_bytes.add(gauge(entry.size));
        queue.waiting.push_back(entry);
        if is_new {
            let inner = Arc::clone(&self.inner);
            let group = group.to_owned();
            self.inner.tasks.spawn("push", async move { inner.work(&group).await });
        }
        Ok(())
    }

    /// Tells the API server that a client has seen its results up to a mutation.
    pub(crate) fn clean_up(&self, group: &str, client_id: &str, up_to: i64, context: &Arc<PushContext>, memory: Lease) {
        let mutation =
            json!({"type": "single", "clientGroupID": group, "clientID": client_id, "upToMutationID": up_to});
        let request_id = format!("cleanup-{group}-{client_id}-{up_to}");
        self.spawn_clean_up(group, client_id, &request_id, mutation, context, Arc::new(memory));
    }

    /// Tells the API server that clients are gone for good.
    pub(crate) fn clean_up_clients(
        &self,
        group: &str,
        client_ids: &[String],
        now_ms: u64,
        context: &Arc<PushContext>,
        memory: Lease,
    ) {
        let memory = Arc::new(memory);
        for (n, part) in client_ids.chunks(CALL_ITEMS).enumerate() {
            let mutation = json!({"type": "bulk", "clientGroupID": group, "clientIDs": part});
            let request_id = match n {
                0 => format!("cleanup-bulk-{group}-{now_ms}"),
                n => format!("cleanup-bulk-{group}-{now_ms}-{n}"),
            };
            self.spawn_clean_up(group, &part[0], &request_id, mutation, context, Arc::clone(&memory));
        }
    }

    fn spawn_clean_up(
        &self,
        group: &str,
        client_id: &str,
        request_id: &str,
        mutation: Value,
        context: &Arc<PushContext>,
        memory: Arc<Lease>,
    ) {
        if self.inner.endpoint.is_none() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.inner.cleanups).try_acquire_owned() else {
            tracing::debug!("clean-up of mutation results dropped: {CLEANUPS_MAX} are under way");
            return;
        };
        let timestamp = unix_ms();
        let body = json!({
            "clientGroupID": group,
            "mutations": [{
                "type": "custom", "id": 0, "clientID": client_id, "name": "_zero_cleanupResults",
                "args": [mutation], "timestamp": timestamp,
            }],
            "pushVersion": 1,
            "timestamp": timestamp,
            "requestID": request_id,
        });
        let inner = Arc::clone(&self.inner);
        let context = Arc::clone(context);
        self.inner.tasks.spawn("clean-up", async move {
            // A failure is logged by the call; the next acknowledgement repeats the work.
            let _ = inner.call(Operation::Cleanup, &context, body.to_string().into()).await;
            drop((permit, memory));
        });
    }

    /// Returns when no push and no clean-up is left.
    pub(crate) async fn finished(&self) {
        self.inner.tasks.finished().await;
    }

    pub(crate) fn live(&self) -> usize {
        self.inner.tasks.live()
    }
}

impl Inner {
    async fn call(&self, operation: Operation, context: &PushContext, body: Bytes) -> Result<Bytes, CallError> {
        let endpoint =
            self.endpoint.as_ref().ok_or_else(|| CallError::Refused("no mutate URL is configured".to_owned()))?;
        let request = endpoint.request(context.url.as_deref(), &context.headers, &context.connection)?;
        self.caller.post(operation, &request, body, (&endpoint.lanes, &context.connection.client_group)).await
    }

    async fn work(&self, group: &str) {
        // Sockets have numbers of their own, and nothing of one that failed comes after what it had waiting by then.
        let mut failed = HashSet::new();
        while let Some(waiting) = self.take(group) {
            for batch in combine(waiting) {
                let Some(connection) = batch.first().map(|entry| entry.connection) else { continue };
                if !failed.contains(&connection) && !self.forward(group, &batch).await {
                    failed.insert(connection);
                }
            }
        }
    }

    /// Everything that waits; `None` ends the group's task.
    fn take(&self, group: &str) -> Option<VecDeque<Entry>> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = groups.get_mut(group)?;
        if queue.waiting.is_empty() {
            groups.remove(group);
            return None;
        }
        self.metrics.push_queue_bytes.sub(gauge(queue.bytes));
        queue.bytes = 0;
        Some(std::mem::take(&mut queue.waiting))
    }

    /// False: the socket that sent them was ended.
    async fn forward(&self, group: &str, batch: &[Entry]) -> bool {
        let Some(first) = batch.first() else { return true };
        if first.kind == MutationKind::Crud {
            return self.write(group, first).await;
        }
        let sent: Vec<MutationId> = batch
            .iter()
            .flat_map(|entry| &entry.push.mutations)
            .map(|m| MutationId { id: m.id, client_id: m.client_id.clone() })
            .collect();
        let body = first.push.combined_body(batch.iter().map(|entry| &entry.push));
        let failed = match self.call(Operation::Mutate, &first.context, body.into()).await {
            Err(error) if let Some(later) = error.passes() => {
                self.registry.fail(group, &first.client_id, &later);
                return false;
            }
            Err(error) => PushFailed {
                failure: error.failure(),
                message: format!("the mutate endpoint failed: {error}"),
                details: None,
                mutation_ids: sent,
            },
            Ok(body) => match answer::parse(&body, &sent) {
                Err(reason) => PushFailed {
                    failure: Failure::ZeroCache(CallReason::Parse),
                    message: format!("the answer of the mutate endpoint cannot be understood: {reason}"),
                    details: Some(json!({"bodyPreview": preview(&String::from_utf8_lossy(&body))})),
                    mutation_ids: sent,
                },
                Ok(Answer::Failed(failed)) => failed,
                Ok(Answer::Processed { user_id, out_of_order }) => {
                    let expected = &first.context.connection.user_id;
                    if user_id.as_ref().is_some_and(|seen| seen != expected) {
                        PushFailed {
                            failure: Failure::http(401, ""),
                            message: "the API server knows the client as another user than it claims to be".to_owned(),
                            details: None,
                            mutation_ids: sent,
                        }
                    } else {
                        return self.report_out_of_order(group, first, out_of_order);
                    }
                }
            },
        };
        self.report(group, first, failed)
    }

    /// Applies CRUD mutations. False: the socket that sent them was ended.
    async fn write(&self, group: &str, entry: &Entry) -> bool {
        // Checked when it was queued.
        let Some(crud) = &self.crud else { return true };
        let tell = |error: &ErrorBody| self.registry.tell(group, &entry.client_id, entry.connection, error);
        match crud.write(group, &entry.push, &entry.context.connection, tell).await {
            Written::Wholly => true,
            Written::Ended(error) => {
                tracing::warn!(
                    group,
                    connection = entry.connection.0,
                    kind = error.kind_name(),
                    reason = error.message(),
                    "push failed"
                );
                self.registry.fail(group, &entry.client_id, &error);
                false
            }
        }
    }

    /// Each client that has a part in the failure hears of all of it. Refused credentials are their owner's alone: whoever else's
    /// mutations these were said to be must not be logged out by them.
    fn report(&self, group: &str, pusher: &Entry, failed: PushFailed) -> bool {
        let mut clients: Vec<String> = match failed.failure.is_auth() {
            true => vec![pusher.client_id.clone()],
            false => failed.mutation_ids.iter().map(|id| id.client_id.clone()).collect(),
        };
        clients.sort_unstable();
        clients.dedup();
        tracing::warn!(
            group,
            clients = clients.len(),
            connection = pusher.connection.0,
            reason = %failed.message,
            "push failed"
        );
        let error = ErrorBody::from(failed);
        let goes_on = !clients.contains(&pusher.client_id);
        for client in clients {
            self.registry.fail(group, &client, &error);
        }
        goes_on
    }

    fn report_out_of_order(&self, group: &str, pusher: &Entry, ids: Vec<MutationId>) -> bool {
        let goes_on = ids.iter().all(|id| id.client_id != pusher.client_id);
        for id in ids {
            let client = id.client_id.clone();
            let failed = PushFailed {
                failure: Failure::Server(ServerReason::OutOfOrderMutation),
                message: format!("mutation {} of client {client} arrived out of order", id.id),
                details: None,
                mutation_ids: vec![id],
            };
            self.registry.fail(group, &client, &failed.into());
        }
        goes_on
    }
}

/// Batches of one socket and its credentials, in the order of first appearance. What does not go into one request begins a new one,
/// behind all others. A CRUD push is one by itself, and nothing passes it: it may have mutations of any client of the group.
fn combine(waiting: VecDeque<Entry>) -> Vec<Vec<Entry>> {
    let mut batches: Vec<Vec<Entry>> = Vec::new();
    /// The batch that takes more, and what is in it.
    struct Open {
        at: usize,
        bytes: usize,
        mutations: usize,
    }
    let mut open: HashMap<(ConnectionId, usize), Open> = HashMap::new();
    for entry in waiting {
        if entry.kind == MutationKind::Crud {
            open.clear();
            batches.push(vec![entry]);
            continue;
        }
        // Entries hold the context, so its address names it for as long as they live.
        let key = (entry.connection, Arc::as_ptr(&entry.context).addr());
        let (bytes, mutations) = (entry.size, entry.push.mutations.len());
        match open.get_mut(&key) {
            Some(open) if open.bytes + bytes <= CALL_BYTES && open.mutations + mutations <= CALL_ITEMS => {
                open.bytes += bytes;
                open.mutations += mutations;
                batches[open.at].push(entry);
            }
            _ => {
                open.insert(key, Open { at: batches.len(), bytes, mutations });
                batches.push(vec![entry]);
            }
        }
    }
    batches
}

fn gauge(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

pub(crate) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
