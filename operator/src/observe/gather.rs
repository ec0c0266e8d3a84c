//! The world as one resource's planning sees it, from the watches' and the outside's memory. Waits for nothing but Secrets that are
//! not known yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crds::ZeroCache;
use crds::names::pod;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};

use super::clock::Clock;
use super::kept::{Access, Keeper};
use super::kinds::Kind;
use super::names::Names;
use super::outside::{Inputs, Key, Outside, Reached};
use super::rivals::{Rivals, Slot};
use super::secrets::Secrets;
use super::wakes::Wakes;
use super::world::{Door, Fact, Seen, Sight, View, World, children};
use super::{Apis, Installation, Kept, Observed, Pod, Role};
use crate::error::{Category, Error, request};
use crate::plan;

/// Replication-managers of one resource that are asked: there are never more.
const MANAGERS_MAX: usize = 2;

/// Where facts come from.
#[derive(Clone)]
pub struct Sources {
    pub client: Client,
    pub installation: Installation,
    pub clock: Arc<Clock>,
    pub world: Arc<World>,
    pub secrets: Arc<Secrets>,
    pub rivals: Arc<Rivals>,
    pub names: Arc<Names>,
    pub keeper: Arc<Keeper>,
    pub outside: Outside,
    pub wakes: Wakes,
}

/// What planning sees, and what applying needs besides.
pub struct Picture {
    pub observed: Observed,
    /// Objects that belong to the resource, as the watches show them.
    pub existing: BTreeMap<(Kind, String), Seen>,
    /// How many of them have gone so far.
    pub losses: u64,
    /// Connection URLs as the Secrets have them.
    pub access: Option<Access>,
    /// Kinds that are left alone, for nobody knows what there is of them.
    pub unseen: BTreeSet<Kind>,
}

impl Sources {
    /// Nothing while the first listings are under way. Fails where what pods depend on cannot be seen: what is not seen must not
    /// be taken for what is not there.
    pub async fn observe(
        &self,
        key: &Key,
        cache: &ZeroCache,
        failure: Option<String>,
    ) -> Result<Option<Picture>, Error> {
        let View { sight, unseen } = self.world.view(Some(&key.namespace));
        match sight {
            Sight::Whole => {}
            Sight::Listing => return Ok(None),
            Sight::Blind(why) => return Err(Error::Unobserved(why)),
        }
        let names = plan::secret_names(cache, &self.installation);
        let secrets = self.secrets.read(&self.client, key, names).await.map_err(|error| match error.category() {
            Category::Forbidden => Error::Unobserved(error.to_string()),
            _ => error,
        })?;
        let losses = self.world.losses(key);
        let mut existing = self.world.of(key);
        let uid = cache.metadata.uid.as_deref().unwrap_or_default();
        let mut observed = Observed::nothing(self.now(), self.installation.clone());
        observed.failure = failure;
        observed.apis =
            Apis { pod_monitors: self.world.serves(Kind::PodMonitor), http_routes: self.world.serves(Kind::HttpRoute) };
        let (wanted, hidden): (Vec<_>, Vec<_>) = plan::object_names(cache, &observed)
            .into_iter()
            .partition(|child| !Kind::named(&child.kind).is_some_and(|kind| unseen.contains_key(&kind)));
        let why = hidden.first().and_then(|child| unseen.get(&Kind::named(&child.kind)?).cloned());
        observed.failure = observed.failure.or(why);
        observed.taken = self.names.look(&self.client, key, uid, &wanted, &mut existing).await?;
        observed.children = children(&existing, uid);
        let pods = sort(&existing, cache, &mut observed);
        observed.secrets = secrets.hashes.clone();
        let access = Access::of(cache, &|reference| secrets.value(reference));
        let is_leaving = cache.metadata.deletion_timestamp.is_some();
        let kept = self.kept(key, cache, access.as_ref(), &mut observed).await;
        observed.is_namespace_leaving = is_leaving && self.is_leaving(&key.namespace).await;
        let mut inputs =
            Inputs::of(cache, &|reference| secrets.value(reference), &pods, &self.installation.cluster_domain);
        if let (true, Some(kept)) = (is_leaving, kept) {
            inputs.fall_back(kept);
        }
        self.outside.look(key, inputs).fill(&mut observed);
        observed.rivals = self.claim(key, cache, &observed);
        if self.installation.is_coarse {
            observed.coarsen();
        }
        let unseen = unseen.into_keys().collect();
        Ok(Some(Picture { observed, existing, losses, access, unseen }))
    }

    /// Whole seconds, as Kubernetes keeps times.
    fn now(&self) -> Timestamp {
        let now = self.clock.now();
        Timestamp::from_second(now.as_second()).unwrap_or(now)
    }

    /// What is kept for the release. That it cannot be known keeps nobody from running.
    async fn kept(
        &self,
        key: &Key,
        cache: &ZeroCache,
        access: Option<&Access>,
        observed: &mut Observed,
    ) -> Option<Access> {
        if !plan::needs_access(cache) {
            return None;
        }
        let uid = cache.metadata.uid.as_deref().unwrap_or_default();
        match self.keeper.look(&self.client, key, uid).await {
            Ok(kept) => {
                observed.kept = match (&kept, access) {
                    (None, _) => Kept::Nothing,
                    (Some(kept), Some(access)) if kept != access => Kept::Outdated,
                    (Some(_), _) => Kept::Current,
                };
                kept
            }
            Err(error) => {
                tracing::warn!(resource = %key, error = error.to_string(), "what releasing needs cannot be kept");
                None
            }
        }
    }

    /// Whether the namespace is being deleted. One that may not be looked at is taken to stay.
    async fn is_leaving(&self, namespace: &str) -> bool {
        let api: Api<Namespace> = Api::all(self.client.clone());
        match request(|| format!("look at namespace {namespace}"), api.get_metadata(namespace)).await {
            Ok(found) => found.metadata.deletion_timestamp.is_some(),
            Err(error) => {
                tracing::warn!(namespace, error = error.to_string(), "a namespace cannot be looked at");
                false
            }
        }
    }

    /// Older resources that want the same slot. Those of other namespaces are nobody's business.
    fn claim(&self, key: &Key, cache: &ZeroCache, observed: &Observed) -> Vec<String> {
        let spec = &cache.spec;
        let asked = observed.databases.upstream.as_ref().and_then(|probe| probe.identity.clone());
        let slot =
            asked.or_else(|| plan::recorded_identity(cache)).map(|it| Slot::new(&it, &spec.app_id, spec.shard_num));
        let since = cache.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0);
        let claimed = self.rivals.claim(key, since, slot);
        let names = claimed.names(&key.namespace);
        for concerned in claimed.concerned {
            self.wakes.hint(concerned);
        }
        names
    }

    /// A resource is gone.
    pub async fn forget(&self, key: &Key) {
        self.secrets.forget(key);
        self.world.release(key);
        self.names.ask_again(key);
        self.keeper.forget(&self.client, key).await;
        self.outside.forget(key);
        self.wakes.send(self.rivals.forget(key)).await;
    }
}

/// Whether a name is another's with a number after it.
fn is_nth(name: &str, of: &str) -> bool {
    let number = name.strip_prefix(of).and_then(|rest| rest.strip_prefix('-'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Puts facts where planning looks for them. Where the processes are reached of which one owns the slot.
fn sort(existing: &BTreeMap<(Kind, String), Seen>, cache: &ZeroCache, observed: &mut Observed) -> Vec<Reached> {
    let uid = cache.metadata.uid.as_deref().unwrap_or_default();
    let main = plan::main_workload(cache);
    let mut lines = BTreeMap::new();
    let mut managers: Vec<(&Pod, Door)> = Vec::new();
    for ((_, name), seen) in existing {
        let is_own = seen.owner.as_deref() == Some(uid);
        match &seen.fact {
            Fact::StatefulSet(set) if is_own => observed.stateful_set = Some(set.clone()),
            Fact::Deployment(deployment) if is_own => observed.deployment = Some(deployment.clone()),
            // Labels can be copied; the names of a StatefulSet's pods and claims cannot be had twice.
            Fact::Pod(pod, _) if pod.role != Role::ViewSyncer && !is_nth(&pod.name, &main) => {
                tracing::debug!(name, "a pod with the labels of another's is left alone");
            }
            Fact::Claim(claim) if !is_nth(&claim.name, &format!("{}-{main}", pod::DATA_VOLUME)) => {
                tracing::debug!(name, "a claim with the labels of another's is left alone");
            }
            Fact::Pod(pod, door) => {
                observed.pods.push(pod.clone());
                managers.extend(door.filter(|_| pod.role != Role::ViewSyncer).map(|door| (pod, door)));
            }
            Fact::LastLine { job, line } => drop(lines.insert(job.clone(), line.clone())),
            Fact::Claim(claim) => observed.claims.push(claim.clone()),
            Fact::Job(job) if is_own => observed.jobs.push(job.clone()),
            Fact::Route(route) if is_own => observed.route = Some(route.clone()),
            Fact::StatefulSet(_) | Fact::Deployment(_) | Fact::Job(_) | Fact::Route(_) => {
                tracing::debug!(name, "an object of another resource of the same name is left alone");
            }
            Fact::Nothing => {}
        }
    }
    for job in &mut observed.jobs {
        if let Some(line) = lines.get(&job.name) {
            job.ended_with(line);
        }
    }
    // A pod that stops is asked only where it is the last.
    let is_any_staying = managers.iter().any(|(pod, _)| !pod.is_terminating);
    managers.retain(|(pod, _)| pod.is_terminating != is_any_staying);
    managers.sort_by_key(|(pod, _)| !pod.is_ready);
    managers.truncate(MANAGERS_MAX);
    let reached = |(pod, door): (&Pod, _)| Reached { name: pod.name.clone(), door, generation: pod.generation.clone() };
    managers.into_iter().map(reached).collect()
}
