//! A small cluster: what Kubernetes' controllers, kubelets, the data plane and people do, one atomic step at a time.
//!
//! Values only, so that a state can be copied, compared and explored. Time has two values, now and long ago: nothing in the
//! operator looks at more than whether a span has passed.

mod document;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use crds::ZeroCache;
use crds::conditions::kind;
use crds::names::{FINALIZER, annotation};
use crds::spec::DeletionPolicy;
use crds::status::ZeroCacheStatus;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use zero_cache_operator::observe::{
    Apis, Child, Claim, ClaimTemplate, Deployment, Installation, Job, JobState, Kept, Limits, Nodes, Observed, Pod,
    PodTrouble, Probe, Role, Secret, StatefulSet, Taken,
};
use zero_cache_operator::plan::{Action, Plan, Workload, object_names, plan};

pub use document::{edit, merge, resource};

/// Written by every plan.
const NOW: &str = "2026-01-02T00:00:00Z";
/// What [`World::pass_time`] makes of it; longer ago than any span in the tests' specs.
const LONG_AGO: &str = "2026-01-01T00:00:00Z";

/// Images with this tag crash.
pub const BROKEN: &str = "1.9.9";

#[derive(Clone, Debug)]
pub struct World {
    /// Shared and hashed once, for it is large and changes seldom.
    cache: Rc<ZeroCache>,
    cache_hash: u64,
    pub secrets: BTreeMap<String, Secret>,
    pub set: Option<Set>,
    pub sets_made: u32,
    pub deployment: Option<Rollout>,
    pub pods: Vec<Node>,
    pub claims: Vec<Claim>,
    pub jobs: Vec<Job>,
    /// Generations whose backup holds a snapshot.
    pub snapshots: Vec<String>,
    pub max_connections: Option<i32>,
    /// Postgres answers.
    pub is_upstream_up: bool,
    pub is_released: bool,
    /// The operator has a copy of the connection URLs.
    pub is_kept: bool,
    /// Releasing was tried and came to nothing.
    pub is_refused: bool,
    /// The namespace is being deleted.
    pub is_leaving: bool,
    /// The resource is gone.
    pub is_gone: bool,
    /// Objects besides workloads, by kind and name.
    pub others: Vec<(String, String)>,
    /// Objects of other people, by kind and name.
    pub strangers: Vec<(String, String)>,
    pub apis: Apis,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Set {
    pub template: Template,
    pub replicas: i32,
    pub claim: Option<String>,
    pub selector: BTreeMap<String, String>,
    pub uid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rollout {
    pub template: Template,
    pub selector: BTreeMap<String, String>,
    pub replicas: i32,
    pub is_ours: bool,
}

/// What a pod template says, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    pub revision: String,
    pub generation: String,
    pub image: String,
    pub secrets: String,
    pub restarted_at: Option<String>,
    /// Stands for all other configuration.
    pub log_level: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub name: String,
    pub role: Role,
    pub template: Template,
    pub is_ready: bool,
    pub is_terminating: bool,
    pub is_crashing: bool,
}

impl Template {
    fn of(template: &PodTemplateSpec) -> Template {
        let annotations = template.metadata.as_ref().unwrap().annotations.as_ref().unwrap();
        let get = |name: &str| annotations.get(name).cloned().unwrap_or_default();
        let container = &template.spec.as_ref().unwrap().containers[0];
        let variables = container.env.as_ref().unwrap();
        let level = variables.iter().find(|variable| variable.name == "ZERO_LOG_LEVEL").unwrap();
        Template {
            revision: get(annotation::REVISION),
            generation: get(annotation::GENERATION),
            image: container.image.clone().unwrap(),
            secrets: get(annotation::SECRETS),
            restarted_at: annotations.get(annotation::RESTARTED_AT).cloned(),
            log_level: level.value.clone().unwrap(),
        }
    }

    fn is_broken(&self) -> bool {
        self.image.ends_with(BROKEN)
    }
}

/// How far the operator comes before it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Everything,
    /// The status is written, nothing is applied.
    Status,
    /// The status is written and objects are applied, but nothing else is done.
    Objects,
}

impl World {
    pub fn new(cache: ZeroCache) -> World {
        let secret =
            |keys: &[&str]| Secret { keys: keys.iter().map(|key| ((*key).to_owned(), "1".to_owned())).collect() };
        let mut world = World {
            cache: Rc::new(cache),
            cache_hash: 0,
            secrets: [
                ("db".to_owned(), secret(&["upstream", "admin", "cvr", "token", "id", "key"])),
                ("stream".to_owned(), secret(&["tls.crt", "tls.key", "ca.crt"])),
            ]
            .into(),
            set: None,
            sets_made: 0,
            deployment: None,
            pods: Vec::new(),
            claims: Vec::new(),
            jobs: Vec::new(),
            snapshots: Vec::new(),
            max_connections: Some(500),
            is_upstream_up: true,
            is_released: false,
            is_kept: false,
            is_refused: false,
            is_leaving: false,
            is_gone: false,
            others: Vec::new(),
            strangers: Vec::new(),
            apis: Apis::default(),
        };
        world.change(|_| {});
        world
    }

    pub fn cache(&self) -> &ZeroCache {
        &self.cache
    }

    pub fn change(&mut self, change: impl FnOnce(&mut ZeroCache)) {
        change(Rc::make_mut(&mut self.cache));
        let mut hasher = DefaultHasher::new();
        format!("{:?}", self.cache).hash(&mut hasher);
        self.cache_hash = hasher.finish();
    }

    /// Equal keys mean equal futures.
    pub fn key(&self) -> u64 {
        // Destructured so that no field is forgotten.
        let World {
            cache: _,
            cache_hash,
            secrets,
            set,
            sets_made,
            deployment,
            pods,
            claims,
            jobs,
            snapshots,
            max_connections,
            is_upstream_up,
            is_released,
            is_kept,
            is_refused,
            is_leaving,
            is_gone,
            others,
            strangers,
            apis: _,
        } = self;
        let mut hasher = DefaultHasher::new();
        secrets.iter().for_each(|(name, secret)| (name, &secret.keys).hash(&mut hasher));
        (cache_hash, set, sets_made, deployment, pods, snapshots, others).hash(&mut hasher);
        (max_connections, is_upstream_up, is_released, is_kept, is_refused, is_leaving, is_gone, strangers)
            .hash(&mut hasher);
        format!("{claims:?}{jobs:?}").hash(&mut hasher);
        hasher.finish()
    }

    pub fn status(&self) -> ZeroCacheStatus {
        self.cache.status.clone().unwrap_or_default()
    }

    pub fn condition(&self, kind: &str) -> (String, String) {
        let conditions = self.status().conditions;
        let found = conditions.iter().find(|condition| condition.type_ == kind);
        found.map_or_else(Default::default, |it| (it.status.clone(), it.reason.clone()))
    }

    pub fn is(&self, kind: &str) -> bool {
        self.condition(kind).0 == "True"
    }

    fn main_role(&self) -> Role {
        match self.cache.spec.topology {
            crds::spec::Topology::SingleNode => Role::SingleNode,
            crds::spec::Topology::MultiNode => Role::ReplicationManager,
        }
    }

    pub fn nodes_of(&self, role: Role) -> impl Iterator<Item = &Node> {
        self.pods.iter().filter(move |pod| pod.role == role)
    }

    fn ready_manager(&self) -> Option<&Node> {
        self.nodes_of(self.main_role()).find(|pod| pod.is_ready && !pod.is_terminating)
    }

    pub fn observe(&self) -> Observed {
        let now: Timestamp = NOW.parse().unwrap();
        let installation = Installation {
            namespace: "zero-cache".to_owned(),
            repository: "registry.example.com/zero-cache".to_owned(),
            tag: "1.0.0".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            is_coarse: false,
            refuses_raw_fields: false,
        };
        let manager = self.ready_manager();
        let probe = Probe {
            server: "db:5432".to_owned(),
            checked_at: now,
            fault: (!self.is_upstream_up)
                .then(|| zero_cache_operator::observe::Fault::Unreachable("connection refused".to_owned())),
            limits: self.max_connections.map(|connections| Limits { connections, in_use: 3 }),
            slot_lost: false,
            identity: None,
        };
        let nothing = Observed { apis: self.apis, ..Observed::nothing(now, installation) };
        let is_taken = |it: &Child| self.strangers.contains(&(it.kind.clone(), it.name.clone()));
        let names = object_names(&self.cache, &nothing).into_iter().filter(is_taken);
        let taken = names.map(|it| Taken { kind: it.kind, name: it.name, by: None }).collect();
        Observed {
            taken,
            stateful_set: self.set.as_ref().map(|set| StatefulSet {
                uid: set.uid.to_string(),
                selector: set.selector.clone(),
                replicas: set.replicas,
                revision: set.template.revision.clone(),
                secrets: set.template.secrets.clone(),
                restarted_at: set.template.restarted_at.clone(),
                is_observed: true,
                available: i32::try_from(
                    self.nodes_of(self.main_role()).filter(|pod| pod.is_ready && !pod.is_terminating).count(),
                )
                .unwrap(),
                claim: set.claim.clone().map(|size| ClaimTemplate { size }),
            }),
            deployment: self.deployment.as_ref().map(|rollout| {
                let pods: Vec<&Node> = self.nodes_of(Role::ViewSyncer).filter(|pod| !pod.is_terminating).collect();
                let is_updated = |pod: &&&Node| pod.template.revision == rollout.template.revision;
                Deployment {
                    selector: rollout.selector.clone(),
                    replicas: rollout.replicas,
                    revision: rollout.template.revision.clone(),
                    secrets: rollout.template.secrets.clone(),
                    is_observed: true,
                    updated: i32::try_from(pods.iter().filter(is_updated).count()).unwrap(),
                    available: i32::try_from(pods.iter().filter(|pod| pod.is_ready).count()).unwrap(),
                    deadline_exceeded: false,
                    replicas_are_ours: rollout.is_ours,
                }
            }),
            pods: self
                .pods
                .iter()
                .map(|node| Pod {
                    name: node.name.clone(),
                    role: node.role,
                    revision: node.template.revision.clone(),
                    generation: node.template.generation.clone(),
                    is_ready: node.is_ready,
                    is_terminating: node.is_terminating,
                    trouble: node.is_crashing.then(|| PodTrouble::CrashLoop("exit code 255".to_owned())),
                })
                .collect(),
            claims: self.claims.clone(),
            secrets: self.secrets.clone(),
            jobs: self.jobs.clone(),
            nodes: manager.map(|node| Nodes {
                pod: node.name.clone(),
                streaming: Some(self.is_upstream_up),
                replica_version: Some("a0".to_owned()),
                snapshot_of: self
                    .snapshots
                    .contains(&node.template.generation)
                    .then(|| node.template.generation.clone()),
                last_backup_at: Some(now),
                ..Nodes::default()
            }),
            databases: zero_cache_operator::observe::Databases { upstream: Some(probe), cvr: None, change: None },
            kept: match (self.cache.spec.deletion.upstream, self.is_kept) {
                (DeletionPolicy::Retain, _) => Kept::Unknown,
                (DeletionPolicy::Delete, true) => Kept::Current,
                (DeletionPolicy::Delete, false) => Kept::Nothing,
            },
            is_namespace_leaving: self.is_leaving,
            release: match (self.is_released, self.is_refused) {
                (true, _) => Some(Ok(())),
                (false, true) => Some(Err("connection refused".to_owned())),
                (false, false) => None,
            },
            children: {
                let mut children: Vec<_> =
                    self.others.iter().map(|(kind, name)| Child { kind: kind.clone(), name: name.clone() }).collect();
                children.sort();
                children
            },
            ..nothing
        }
    }

    /// The operator plans and carries the plan out, as far as it comes. Checks what must hold of every plan.
    pub fn operate(&self, reach: Reach) -> World {
        let observed = self.observe();
        let plan = plan(&self.cache, &observed);
        self.check(&plan);
        let mut next = self.clone();
        if next.cache.status.as_ref() != Some(&plan.status) {
            next.change(|cache| cache.status = Some(plan.status.clone()));
        }
        if reach == Reach::Status {
            return next;
        }
        let is_first = |action: &&Action| matches!(action, Action::AddFinalizer | Action::KeepAccess);
        for action in plan.actions.iter().filter(is_first) {
            next.act(action);
        }
        if let Some(objects) = &plan.objects {
            for generated in &objects.secrets {
                let name = generated.secret.metadata.name.clone().unwrap();
                let keys = [(generated.key.to_owned(), "random".to_owned())].into();
                next.secrets.entry(name).or_insert(Secret { keys });
            }
            if let Workload::Apply(set) = &objects.stateful_set {
                let releases = self.cache.spec.deletion.upstream == DeletionPolicy::Delete;
                assert!(!releases || next.is_kept, "pods run before what releases their slot is kept");
                let spec = set.spec.as_ref().unwrap();
                let claim = spec.volume_claim_templates.as_ref().map(|templates| {
                    templates[0].spec.as_ref().unwrap().resources.as_ref().unwrap().requests.as_ref().unwrap()["storage"]
                        .0
                        .clone()
                });
                next.sets_made += u32::from(next.set.is_none());
                let selector = spec.selector.match_labels.clone().unwrap();
                if let Some(old) = &self.set {
                    assert_eq!(old.selector, selector, "a StatefulSet's selector cannot be changed in place");
                    assert_eq!(old.claim, claim, "claims of a StatefulSet cannot be changed in place");
                }
                next.set = Some(Set {
                    template: Template::of(&spec.template),
                    replicas: spec.replicas.unwrap(),
                    claim,
                    selector,
                    uid: next.sets_made,
                });
            }
            if let Workload::Apply(deployment) = &objects.deployment {
                let spec = deployment.spec.as_ref().unwrap();
                // A field that its only owner gives up falls back to its default.
                let selector = spec.selector.match_labels.clone().unwrap();
                if let Some(old) = &self.deployment {
                    assert_eq!(old.selector, selector, "a Deployment's selector cannot be changed in place");
                }
                let kept = next.deployment.as_ref().filter(|rollout| !rollout.is_ours);
                next.deployment = Some(Rollout {
                    template: Template::of(&spec.template),
                    selector,
                    replicas: spec.replicas.or_else(|| kept.map(|rollout| rollout.replicas)).unwrap_or(1),
                    is_ours: spec.replicas.is_some(),
                });
            }
            for job in &objects.cleanup_jobs {
                let name = job.metadata.name.clone().unwrap();
                if !next.jobs.iter().any(|job| job.name == name) {
                    next.jobs.push(Job { name, state: JobState::Running });
                }
            }
            next.others
                .retain(|(kind, name)| !plan.remove.iter().any(|child| child.kind == *kind && child.name == *name));
            for child in objects.children() {
                let id = (child.kind, child.name);
                if !next.others.contains(&id) {
                    next.others.push(id);
                }
            }
            next.others.sort();
        }
        if reach == Reach::Objects {
            return next;
        }
        for action in plan.actions.iter().filter(|action| !is_first(action)) {
            next.act(action);
        }
        next
    }

    pub fn act(&mut self, action: &Action) {
        match action {
            Action::AddFinalizer => self.change(|cache| cache.metadata.finalizers = Some(vec![FINALIZER.to_owned()])),
            Action::RemoveFinalizer => {
                self.change(|cache| cache.metadata.finalizers = None);
                self.is_gone = self.cache.metadata.deletion_timestamp.is_some();
            }
            Action::Scale { role: Role::ViewSyncer, replicas } => {
                let rollout = self.deployment.as_mut().unwrap();
                rollout.replicas = *replicas;
                rollout.is_ours = false;
            }
            Action::Scale { replicas, .. } => {
                let syncers = self.nodes_of(Role::ViewSyncer).count();
                assert!(
                    *replicas > 0 || syncers == 0 || self.is_leaving,
                    "the replication-manager stops before {syncers} view-syncers"
                );
                self.set.as_mut().unwrap().replicas = *replicas;
            }
            Action::KeepAccess => self.is_kept = true,
            Action::DiscardAccess => self.is_kept = false,
            Action::DeletePod { name } => self.pods.retain(|pod| pod.name != *name),
            Action::OrphanStatefulSet { uid, .. } => {
                self.set.take_if(|set| set.uid.to_string() == *uid);
            }
            Action::GrowClaim { name, size } => {
                self.claims.iter_mut().find(|claim| claim.name == *name).unwrap().requested = size.clone();
            }
            Action::ReleaseUpstream => {
                let runs = self.nodes_of(self.main_role()).next().is_some();
                assert!(!runs || self.is_leaving, "a slot in use cannot be dropped");
                let has_url = self.is_kept || self.secrets.contains_key("db");
                self.is_released |= has_url && self.is_upstream_up;
                self.is_refused = !self.is_released;
            }
        }
    }

    /// What must hold of every plan in every state.
    fn check(&self, plan: &Plan) {
        let before = self.status();
        if before.upgrade.as_ref().is_some_and(|it| plan.status.current_revision.as_ref() == Some(&it.target))
            && plan.status.upgrade.is_none()
            && before.current_revision != plan.status.current_revision
        {
            let revision = self.deployment.as_ref().map(|it| it.template.revision.as_str());
            let is_left = |pod: &&Node| revision != Some(pod.template.revision.as_str());
            assert_eq!(
                self.nodes_of(Role::ViewSyncer).filter(is_left).count(),
                0,
                "an upgrade ends while old pods drain"
            );
        }
        let is_ready = |it: &Condition| it.type_ == kind::READY && it.status == "True";
        assert!(
            plan.status.current_revision.is_some()
                || plan.status.current_version.is_none() && !plan.status.conditions.iter().any(is_ready),
            "it says that something runs, and would replace all of it at once: {:#?}",
            plan.status
        );
        let Some(objects) = &plan.objects else { return };
        for child in objects.children().into_iter().chain(plan.remove.iter().cloned()) {
            let id = (child.kind, child.name);
            assert!(!self.strangers.contains(&id), "{id:?} is another's");
        }
        let is_theirs = |kind: &str, name: &str| self.strangers.iter().any(|it| it.0 == kind && it.1 == name);
        let is_public_theirs = is_theirs("Service", "shop-vs");
        assert!(objects.ingress.is_none() || !is_public_theirs, "clients are sent to a stranger");
        let runs = objects.stateful_set.applied().is_some() || objects.deployment.applied().is_some();
        let is_unsafe = is_theirs("ServiceAccount", "shop") || is_theirs("Service", "shop-rm") || is_public_theirs;
        assert!(!(runs && is_unsafe), "pods run with a stranger's object");
        if let Workload::Apply(deployment) = &objects.deployment {
            let new = Template::of(&deployment.spec.as_ref().unwrap().template);
            let is_change = self.deployment.as_ref().is_none_or(|old| old.template.revision != new.revision);
            if is_change {
                let manager = self.ready_manager().map(|node| &node.template);
                let same = |it: &Template| {
                    (&it.image, &it.generation, &it.log_level) == (&new.image, &new.generation, &new.log_level)
                };
                assert!(manager.is_some_and(same), "view-syncers {new:?} before their replication-manager {manager:?}");
                let is_other = |pod: &&Node| !same(&pod.template);
                let other = self.nodes_of(self.main_role()).find(is_other);
                assert!(other.is_none(), "view-syncers {new:?} while {other:?} may still replicate");
                assert!(
                    self.cache.spec.backup.is_none()
                        || self.snapshots.contains(&new.generation)
                        || self.deployment.is_none()
                        // Before the first start is over, nobody is served who could be cut off.
                        || before.current_revision.is_none(),
                    "view-syncers move to {} before it is backed up",
                    new.generation
                );
            }
        }
        for job in &objects.cleanup_jobs {
            let arguments =
                job.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0].args.clone().unwrap();
            let url = arguments.iter().find_map(|text| text.strip_prefix("--url=")).unwrap();
            for pod in &self.pods {
                let used = format!("/{}/", pod.template.generation);
                assert!(!url.ends_with(&used), "{} still uses {url}", pod.name);
            }
            assert!(
                self.cache.metadata.deletion_timestamp.is_some() || {
                    let used = format!("/{}/", self.cache.spec.generation);
                    !url.ends_with(&used)
                },
                "{url} is wanted"
            );
        }
        let serving = self.nodes_of(Role::ViewSyncer).filter(|pod| pod.is_ready).count();
        let scales_to_nothing = plan.actions.contains(&Action::Scale { role: Role::ViewSyncer, replicas: 0 });
        assert!(
            !(scales_to_nothing && serving > 0)
                || self.cache.spec.suspended
                || self.cache.spec.view_syncer.replicas == 0
                || self.cache.metadata.deletion_timestamp.is_some(),
            "serving view-syncers are taken away"
        );
    }

    /// Everything that may happen by itself and does no harm, in an order that is fair.
    pub fn happenings(&self) -> Vec<(&'static str, World)> {
        let mut list = Vec::new();
        let mut may = |name: &'static str, next: Option<World>| list.extend(next.map(|next| (name, next)));
        may("StatefulSet controller", self.control_set());
        may("Deployment controller", self.control_deployment());
        for index in 0..self.pods.len() {
            may("kubelet", self.run_pod(index));
        }
        may("backup", self.write_snapshot());
        may("volume", self.grow_volume());
        may("Job", self.finish_job());
        list
    }

    /// What goes wrong in a cluster.
    pub fn accidents(&self) -> Vec<(&'static str, World)> {
        let mut list = Vec::new();
        for (index, pod) in self.pods.iter().enumerate() {
            let mut lost = self.clone();
            lost.pods.remove(index);
            list.push(("pod lost", lost));
            if pod.is_ready && !pod.is_terminating {
                let mut sick = self.clone();
                sick.pods[index].is_ready = false;
                list.push(("pod not ready", sick));
            }
        }
        if self.set.is_some() {
            list.push(("StatefulSet deleted", World { set: None, ..self.clone() }));
        }
        if self.deployment.is_some() {
            list.push(("Deployment deleted", World { deployment: None, ..self.clone() }));
        }
        for reach in [Reach::Status, Reach::Objects] {
            list.push(("operator dies", self.operate(reach)));
        }
        list
    }

    /// Everything recorded happened long ago, except what was just read from others.
    pub fn pass_time(&self) -> World {
        let mut next = self.clone();
        let Some(old) = &self.cache.status else { return next };
        let text = serde_json::to_string(old).unwrap().replace(NOW, LONG_AGO);
        let mut status: ZeroCacheStatus = serde_json::from_str(&text).unwrap();
        status.connection_budget = old.connection_budget.clone();
        status.replication_manager = old.replication_manager.clone();
        if status != *old {
            next.change(|cache| cache.status = Some(status));
        }
        next
    }

    /// One pod after the other: the first ones first when they are made, the last ones first when they go or are replaced, and
    /// nothing while one is not ready.
    fn control_set(&self) -> Option<World> {
        let role = self.main_role();
        let set = self.set.as_ref()?;
        let mut next = self.clone();
        let names = (0..set.replicas).map(|ordinal| format!("main-{ordinal}"));
        for name in names.clone() {
            match self.pods.iter().find(|pod| pod.name == name) {
                None => {
                    next.create(&name, role, set.template.clone());
                    return Some(next);
                }
                Some(pod) if pod.is_terminating || !pod.is_ready => return None,
                Some(_) => {}
            }
        }
        let is_kept = |pod: &Node| names.clone().any(|name| name == pod.name);
        let last_first = || next.pods.iter().rev().filter(|pod| pod.role == role);
        let leaving = last_first().find(|pod| !is_kept(pod));
        let outdated = last_first().find(|pod| pod.template.revision != set.template.revision);
        let victim = leaving.or(outdated)?;
        if victim.is_terminating {
            return None;
        }
        let name = victim.name.clone();
        next.pods.iter_mut().find(|pod| pod.name == name)?.is_terminating = true;
        Some(next)
    }

    /// One step of a rollout with a surge of one.
    fn control_deployment(&self) -> Option<World> {
        let mut next = self.clone();
        let Some(rollout) = &self.deployment else {
            // The garbage collector.
            let orphan = next.pods.iter_mut().find(|pod| pod.role == Role::ViewSyncer && !pod.is_terminating)?;
            orphan.is_terminating = true;
            return Some(next);
        };
        let wanted = usize::try_from(rollout.replicas).unwrap();
        let staying: Vec<&Node> = self.nodes_of(Role::ViewSyncer).filter(|pod| !pod.is_terminating).collect();
        let is_new = |pod: &Node| pod.template.revision == rollout.template.revision;
        let new = staying.iter().filter(|pod| is_new(pod)).count();
        let ready = staying.iter().filter(|pod| pod.is_ready).count();
        // Old pods that are of no use go first, then those that are not needed any longer.
        let useless = staying.iter().find(|pod| !is_new(pod) && !pod.is_ready);
        let surplus = staying.iter().find(|pod| !is_new(pod) && ready > wanted);
        let excess = staying.iter().rev().find(|_| new > wanted || (wanted == 0 && !staying.is_empty()));
        if let Some(victim) = useless.or(surplus).or(excess) {
            let name = victim.name.clone();
            next.pods.iter_mut().find(|pod| pod.name == name).unwrap().is_terminating = true;
            return Some(next);
        }
        if new < wanted && staying.len() < wanted + 1 {
            let free =
                (0..).map(|index| format!("vs-{index}")).find(|name| !self.pods.iter().any(|pod| pod.name == *name));
            next.create(&free.unwrap(), Role::ViewSyncer, rollout.template.clone());
            return Some(next);
        }
        None
    }

    fn create(&mut self, name: &str, role: Role, template: Template) {
        let name = name.to_owned();
        if role == self.main_role() {
            let other = self.nodes_of(role).find(|pod| pod.template.generation != template.generation);
            assert!(other.is_none(), "a replication-manager of {} beside {other:?}", template.generation);
            self.claim(&name);
        }
        self.pods.push(Node { name, role, template, is_ready: false, is_terminating: false, is_crashing: false });
        self.pods.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// A claim outlives the pod it was made for.
    fn claim(&mut self, pod: &str) {
        let Some(size) = self.set.as_ref().and_then(|set| set.claim.clone()) else { return };
        let name = format!("data-{pod}");
        if !self.claims.iter().any(|claim| claim.name == name) {
            self.claims.push(Claim { name, requested: size.clone(), actual: Some(size), refused: None });
        }
    }

    fn run_pod(&self, index: usize) -> Option<World> {
        let mut next = self.clone();
        let pod = &mut next.pods[index];
        if pod.is_terminating {
            next.pods.remove(index);
            return Some(next);
        }
        if pod.is_ready || pod.is_crashing {
            return None;
        }
        if pod.template.is_broken() {
            pod.is_crashing = true;
            return Some(next);
        }
        // A view-syncer starts from a replication-manager of the same generation and its backup.
        let manager = self.ready_manager().map(|node| node.template.generation.as_str());
        let is_served = manager == Some(pod.template.generation.as_str());
        let has_backup = self.cache.spec.backup.is_none() || self.snapshots.contains(&pod.template.generation);
        let needs = if pod.role == Role::ViewSyncer { is_served && has_backup } else { self.is_upstream_up };
        needs.then(|| {
            next.pods[index].is_ready = true;
            next
        })
    }

    fn write_snapshot(&self) -> Option<World> {
        let generation = self.ready_manager()?.template.generation.clone();
        let is_new = self.cache.spec.backup.is_some() && !self.snapshots.contains(&generation);
        is_new.then(|| {
            let mut next = self.clone();
            next.snapshots.push(generation);
            next.snapshots.sort();
            next
        })
    }

    fn grow_volume(&self) -> Option<World> {
        let mut next = self.clone();
        let claim = next.claims.iter_mut().find(|claim| claim.actual.as_ref() != Some(&claim.requested))?;
        claim.actual = Some(claim.requested.clone());
        Some(next)
    }

    fn finish_job(&self) -> Option<World> {
        let mut next = self.clone();
        let job = next.jobs.iter_mut().find(|job| job.state == JobState::Running)?;
        job.state = JobState::Succeeded(Some(7));
        Some(next)
    }

    /// The next state when nothing goes wrong; the same when nothing is left to happen.
    pub fn settle_once(&self) -> Option<World> {
        self.settle_after(self.operate(Reach::Everything))
    }

    /// The same, when what the operator makes of this state is known.
    pub fn settle_after(&self, operated: World) -> Option<World> {
        if self.is_gone {
            return None;
        }
        let key = self.key();
        if operated.key() != key {
            return Some(operated);
        }
        if let Some((_, next)) = self.happenings().into_iter().next() {
            return Some(next);
        }
        let later = self.pass_time();
        (later.key() != key).then_some(later)
    }

    /// Everything that is still to happen, happens.
    pub fn settle(mut self) -> World {
        for _ in 0..400 {
            match self.settle_once() {
                Some(next) => self = next,
                None => return self,
            }
        }
        panic!("it does not settle: {:#?}", self.status());
    }
}
