//! Every reachable state of each flow: people change their minds at any moment, pods and objects get lost, the operator dies
//! between any two steps, time passes. From each state on, once nothing more goes wrong, the model settles, and then either
//! clients are served as asked for or a condition names what a person must do.

use std::collections::{HashMap, HashSet, VecDeque};

use crds::conditions::kind;
use crds::names::annotation;
use crds::status::{Phase, RetiredState, UpgradeStep};
use serde_json::{Value, json};

use crate::model::{BROKEN, Reach, World, edit, resource};
use zero_cache_operator::observe::Role;

pub type Edit = Box<dyn Fn(&World) -> World>;

pub fn spec(change: Value) -> Edit {
    Box::new(move |world| edit(world, change.clone()))
}

pub fn image(tag: &str) -> Edit {
    spec(json!({ "image": { "tag": tag } }))
}

fn generation(name: &str) -> Edit {
    spec(json!({ "generation": name }))
}

pub fn world(change: impl Fn(&mut World) + 'static) -> Edit {
    Box::new(move |world| {
        let mut next = world.clone();
        change(&mut next);
        next
    })
}

pub fn delete() -> Edit {
    world(|world| {
        let then = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        world.change(|cache| cache.metadata.deletion_timestamp = Some(then));
        // Nothing holds it.
        world.is_gone = world.cache().metadata.finalizers.is_none();
    })
}

/// A state and how it came about, newest last.
struct State {
    world: World,
    edits_done: usize,
    accidents_left: usize,
    path: Vec<&'static str>,
}

/// What is known of states that were met before.
#[derive(Default)]
struct Memory {
    operated: HashMap<u64, World>,
    settled: HashSet<(u64, bool)>,
}

impl Memory {
    fn operate(&mut self, world: &World) -> World {
        self.operated.entry(world.key()).or_insert_with(|| world.operate(Reach::Everything)).clone()
    }
}

/// Explores `edits`, made in order at any moment, with so many accidents at any moment. `verdict` is asked of what every state
/// settles to once all edits are made. Returns the number of states.
pub fn explore(start: World, edits: &[Edit], accidents: usize, verdict: impl Fn(&World)) -> usize {
    let mut seen = HashSet::new();
    let mut memory = Memory::default();
    let mut queue =
        VecDeque::from([State { world: start, edits_done: 0, accidents_left: accidents, path: Vec::new() }]);
    while let Some(state) = queue.pop_front() {
        settle(&state, state.edits_done == edits.len(), &mut memory, &verdict);
        let (done, left) = (state.edits_done, state.accidents_left);
        let mut push = |world: World, name: &'static str, edits_done: usize, accidents_left: usize| {
            if seen.insert((world.key(), edits_done, accidents_left)) {
                let path = state.path.iter().copied().chain([name]).collect();
                queue.push_back(State { world, edits_done, accidents_left, path });
            }
        };
        if state.world.is_gone {
            continue;
        }
        push(memory.operate(&state.world), "operator", done, left);
        for (name, next) in state.world.happenings() {
            push(next, name, done, left);
        }
        if let Some(change) = edits.get(done) {
            push(change(&state.world), "EDIT", done + 1, left);
        }
        if left > 0 {
            push(state.world.pass_time(), "TIME", done, left - 1);
            for (name, next) in state.world.accidents() {
                push(next, name, done, left - 1);
            }
        }
    }
    seen.len()
}

/// Lets everything happen that is still to happen, and judges what comes of it. A way that joins one that was judged before is
/// not followed again.
fn settle(state: &State, is_final: bool, memory: &mut Memory, verdict: &impl Fn(&World)) {
    let mut world = state.world.clone();
    for _ in 0..400 {
        if !memory.settled.insert((world.key(), is_final)) {
            return;
        }
        let operated = memory.operate(&world);
        if let Some(next) = world.settle_after(operated) {
            world = next;
            continue;
        }
        let judge = || {
            judge(&world);
            if is_final {
                verdict(&world);
            }
        };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(judge)).is_err() {
            let World { pods, set, deployment, .. } = &world;
            let status = serde_json::to_string_pretty(&world.status()).unwrap();
            panic!("after {:?} it settles to {status}\n{pods:#?}\n{set:#?}\n{deployment:#?}", state.path);
        }
        return;
    }
    panic!("after {:?} it never settles: {:#?}", state.path, world.status());
}

/// Served as asked for, or a condition says what to do. And nothing is left to do or to tell.
fn judge(world: &World) {
    if world.is_gone {
        return;
    }
    let plan = zero_cache_operator::plan::plan(world.cache(), &world.observe());
    assert_eq!(plan.events, [], "told again and again");
    assert_eq!(plan.remove, [], "removed again and again");
    assert_eq!(plan.status, world.status(), "written again and again");
    let status = world.status();
    let is_flowing = status.upgrade.is_some() || status.reset.is_some();
    for backed_up in world.snapshots.iter().filter(|_| !is_flowing) {
        let is_current = status.current_generation.as_ref() == Some(backed_up);
        let is_retired = status.retired_generations.iter().any(|it| it.name == *backed_up);
        assert!(is_current || is_retired, "the backup of {backed_up} is forgotten");
    }
    if is_running(world) {
        return;
    }
    let needs_person = [
        (kind::UPGRADE_BLOCKED, "True"),
        (kind::UPGRADE_STALLED, "True"),
        (kind::RESET_BLOCKED, "True"),
        (kind::DEGRADED, "True"),
        (kind::UPSTREAM_READY, "False"),
        (kind::CONNECTION_BUDGET_SATISFIED, "False"),
        (kind::RECONCILIATION_PAUSED, "True"),
    ];
    let conditions = world.status().conditions;
    let named = conditions.iter().find(|it| needs_person.contains(&(it.type_.as_str(), it.status.as_str())));
    let is_said = named.is_some_and(|condition| !condition.message.is_empty());
    let is_stopped = world.condition(kind::READY).1 == "Suspended" && world.pods.is_empty();
    let is_taken = world.condition(kind::READY).1 == "NameTaken";
    assert!(is_said || is_stopped || is_taken, "neither served nor said why");
}

/// Everything is as asked for, and no flow is under way.
fn is_running(world: &World) -> bool {
    let status = world.status();
    let spec = &world.cache().spec;
    let tag = spec.image.tag.clone().unwrap_or_else(|| "1.0.0".to_owned());
    let is_wanted = |pod: &crate::model::Node| {
        pod.is_ready
            && !pod.is_terminating
            && pod.template.image.ends_with(&format!(":{tag}"))
            && pod.template.generation == spec.generation
    };
    let syncers = usize::try_from(spec.view_syncer.replicas).unwrap();
    let is_multi = spec.topology == crds::spec::Topology::MultiNode;
    let managers = if spec.replication_manager.standby.enabled { 2 } else { 1 };
    status.phase == Some(Phase::Running)
        && world.is(kind::READY)
        && status.upgrade.is_none()
        && status.reset.is_none()
        && status.current_generation.as_deref() == Some(spec.generation.as_str())
        && world.pods.iter().all(is_wanted)
        && world.pods.len() == managers + if is_multi { syncers } else { 0 }
}

pub fn running(world: &World) {
    assert!(is_running(world), "it does not run as asked for");
}

pub fn settled(change: Value) -> World {
    let world = World::new(resource(change)).settle();
    running(&world);
    world
}

/// Prints how large the model was, for `--nocapture`.
pub fn report(name: &str, states: usize) {
    println!("{name}: {states} states");
    assert!(states > 10, "{name}: the model hardly moves");
}

#[test]
fn a_first_start_ends_in_running() {
    report("install", explore(World::new(resource(json!({}))), &[], 2, running));
}

#[test]
fn a_first_start_with_a_broken_image_says_so_and_a_new_image_heals_it() {
    let start = World::new(resource(json!({ "image": { "tag": BROKEN } })));
    let settled = start.clone().settle();
    assert_eq!(settled.condition(kind::REPLICATION_MANAGER_READY), ("False".to_owned(), "CrashLoop".to_owned()));
    assert!(settled.is(kind::DEGRADED));
    report("install broken", explore(start, &[image("1.0.1")], 1, running));
}

#[test]
fn an_upgrade_ends_in_running() {
    report("upgrade", explore(settled(json!({})), &[image("1.1.0")], 1, running));
    let two = settled(json!({ "viewSyncer": { "replicas": 2 } }));
    report("upgrade of two", explore(two, &[image("1.1.0")], 0, running));
}

#[test]
fn an_upgrade_to_a_broken_image_stalls_and_clients_stay_served() {
    let verdict = |world: &World| {
        assert!(world.is(kind::UPGRADE_STALLED));
        assert_eq!(world.status().phase, Some(Phase::Degraded));
    };
    let start = settled(json!({}));
    report("broken upgrade", explore(start.clone(), &[image(BROKEN)], 1, verdict));
    let quiet = image(BROKEN)(&start).settle();
    assert!(quiet.nodes_of(Role::ViewSyncer).all(|pod| pod.is_ready && pod.template.image.ends_with(":1.0.0")));
}

#[test]
fn going_back_from_a_broken_image_works_at_any_moment() {
    report("back", explore(settled(json!({})), &[image(BROKEN), image("1.0.0")], 1, running));
}

#[test]
fn nothing_stands_in_the_way_back() {
    let mut broken = image(BROKEN)(&settled(json!({}))).settle();
    assert!(broken.set.as_ref().unwrap().template.image.ends_with(BROKEN));
    broken.is_upstream_up = false;
    let back = image("1.0.0")(&broken).settle();
    assert!(back.set.as_ref().unwrap().template.image.ends_with(":1.0.0"), "a check held the way back up");
}

#[test]
fn going_forward_from_a_broken_image_works_at_any_moment() {
    let downgrade = json!({ "upgrade": { "allowDowngrade": true } });
    report("forward", explore(settled(downgrade), &[image(BROKEN), image("1.9.10")], 0, running));
}

#[test]
fn a_change_of_configuration_during_an_upgrade_is_rolled_out_as_well() {
    let edits = [image("1.1.0"), spec(json!({ "logging": { "level": "debug" } }))];
    let verdict = |world: &World| {
        running(world);
        assert!(world.pods.iter().all(|pod| pod.template.log_level == "debug"));
    };
    report("configuration", explore(settled(json!({})), &edits, 0, verdict));
}

#[test]
fn a_reset_moves_everything_to_the_new_generation() {
    let verdict = |world: &World| {
        running(world);
        let retired = world.status().retired_generations;
        assert_eq!(retired.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["v1"]);
    };
    report("reset", explore(settled(json!({})), &[generation("v2")], 1, verdict));
}

#[test]
fn a_reset_can_be_taken_back_at_any_moment() {
    report(
        "reset and back",
        explore(settled(json!({})), &[generation("v2"), generation("v1")], 0, |world| {
            // Once the new generation was reached, the old one is retired, and a person must say that it may be used again.
            assert!(is_running(world) || world.is(kind::RESET_BLOCKED), "neither back nor refused");
        }),
    );
    let edits = [
        generation("v2"),
        world(|world| {
            world.change(|cache| {
                cache.spec.generation = "v1".to_owned();
                let reuse = (annotation::REUSE_GENERATION.to_owned(), "v1".to_owned());
                cache.metadata.annotations = Some([reuse].into());
            });
        }),
    ];
    report("reset and back, allowed", explore(settled(json!({})), &edits, 0, running));
}

#[test]
fn a_reset_can_be_replaced_by_another_at_any_moment() {
    let edits = [generation("v2"), generation("v3")];
    let verdict = |world: &World| {
        running(world);
        let retired = world.status().retired_generations;
        assert!(retired.iter().any(|it| it.name == "v1") && retired.iter().all(|it| it.name != "v3"), "{retired:?}");
    };
    report("reset replaced", explore(settled(json!({})), &edits, 0, verdict));
}

#[test]
fn an_upgrade_and_a_reset_wait_for_each_other() {
    report("upgrade, reset", explore(settled(json!({})), &[image("1.1.0"), generation("v2")], 0, running));
    report("reset, upgrade", explore(settled(json!({})), &[generation("v2"), image("1.1.0")], 0, running));
}

#[test]
fn suspending_and_resuming_works_at_any_moment_of_an_upgrade() {
    let edits = [image("1.1.0"), spec(json!({ "suspended": true })), spec(json!({ "suspended": false }))];
    report("suspend", explore(settled(json!({})), &edits, 0, running));
    let edits = [spec(json!({ "suspended": true }))];
    report(
        "stop",
        explore(settled(json!({})), &edits, 1, |world| {
            assert_eq!(world.status().phase, Some(Phase::Suspended));
            assert!(world.pods.is_empty());
        }),
    );
}

#[test]
fn pausing_freezes_and_unpausing_goes_on() {
    let edits = [image("1.1.0"), spec(json!({ "paused": true })), spec(json!({ "paused": false }))];
    report("pause", explore(settled(json!({})), &edits, 0, running));
    let paused = edit(&settled(json!({})), json!({ "paused": true, "image": { "tag": "1.1.0" } })).settle();
    assert!(paused.is(kind::RECONCILIATION_PAUSED) && paused.is(kind::READY));
    assert!(paused.pods.iter().all(|pod| pod.template.image.ends_with(":1.0.0")));
}

#[test]
fn time_spent_in_a_pause_is_nobodys_delay() {
    let mut world = image("1.1.0")(&settled(json!({})));
    for _ in 0..3 {
        world = world.operate(Reach::Everything);
    }
    assert_eq!(world.status().upgrade.unwrap().step, UpgradeStep::ReplicationManager);
    let late = world.pass_time().operate(Reach::Everything);
    assert!(late.is(kind::UPGRADE_STALLED), "a step that takes long is late");
    for stop in ["paused", "suspended"] {
        let stopped = edit(&world, json!({ stop: true })).operate(Reach::Everything).pass_time();
        let stopped = stopped.operate(Reach::Everything);
        assert!(!stopped.is(kind::UPGRADE_STALLED), "{stop}: late while nothing may happen");
        let resumed = edit(&stopped, json!({ stop: false })).operate(Reach::Everything);
        assert!(!resumed.is(kind::UPGRADE_STALLED), "{stop}: late at once");
    }
}

fn rotate(world: &mut World) {
    world.secrets.get_mut("db").unwrap().keys.insert("upstream".to_owned(), "2".to_owned());
}

#[test]
fn a_rotated_secret_restarts_pods_in_order() {
    let start = settled(json!({}));
    let before = start.pods[0].template.secrets.clone();
    report(
        "rotation",
        explore(start, &[world(rotate)], 1, move |world| {
            running(world);
            assert!(world.pods.iter().all(|pod| pod.template.secrets != before));
        }),
    );
}

#[test]
fn a_missing_secret_is_named_and_what_runs_goes_on() {
    let remove = || world(|world| drop(world.secrets.remove("db")));
    let start = settled(json!({}));
    let missing = remove()(&start).settle();
    assert_eq!(missing.condition(kind::UPSTREAM_READY), ("False".to_owned(), "SecretMissing".to_owned()));
    assert!(missing.is(kind::READY));
    let full = start.secrets.clone();
    let restore = world(move |world| world.secrets.clone_from(&full));
    report("secret", explore(start, &[image("1.1.0"), remove(), restore], 0, running));
}

#[test]
fn scaling_ends_with_the_pods_asked_for() {
    let scale = |count: i32| spec(json!({ "viewSyncer": { "replicas": count } }));
    report("scale", explore(settled(json!({})), &[scale(2), scale(0), scale(1)], 0, running));
}

/// Handing the number of pods over to an autoscaler must not fall back to one pod on the way.
#[test]
fn an_autoscaler_takes_over_the_pods_there_are() {
    let start = settled(json!({ "viewSyncer": { "replicas": 3 } }));
    let scaled = json!({ "viewSyncer": { "autoscaling": { "minReplicas": 1, "maxReplicas": 9 } } });
    let mut world = edit(&start, scaled);
    for _ in 0..20 {
        for reach in [Reach::Objects, Reach::Everything] {
            let next = world.operate(reach);
            assert_eq!(next.deployment.as_ref().unwrap().replicas, 3);
            world = next;
        }
    }
    assert!(!world.deployment.as_ref().unwrap().is_ours, "the operator still owns the number");
    let asleep = edit(&world, json!({ "suspended": true })).settle();
    assert!(asleep.pods.is_empty());
    let awake = edit(&asleep, json!({ "suspended": false })).settle();
    assert_eq!(awake.nodes_of(Role::ViewSyncer).count(), 1, "an autoscaler starts from its minimum");
    running(&edit(&awake, json!({ "viewSyncer": { "autoscaling": null, "replicas": 2 } })).settle());
}

#[test]
fn a_volume_grows_at_any_moment() {
    let grow = || spec(json!({ "replicationManager": { "storage": { "size": "40Gi" } } }));
    let verdict = |world: &World| {
        running(world);
        assert_eq!(world.set.as_ref().unwrap().claim.as_deref(), Some("40Gi"));
        assert!(world.claims.iter().all(|claim| claim.actual.as_deref() == Some("40Gi")));
        assert!(!world.status().storage.unwrap().resize_pending);
    };
    report("volume", explore(settled(json!({})), &[grow()], 1, verdict));
    report("volume in an upgrade", explore(settled(json!({})), &[image("1.1.0"), grow()], 0, verdict));
}

#[test]
fn a_volume_that_cannot_grow_is_named() {
    let mut start = settled(json!({}));
    start.claims[0].refused = Some("storageclass forbids it".to_owned());
    let world = edit(&start, json!({ "replicationManager": { "storage": { "size": "40Gi" } } })).settle();
    assert_eq!(world.condition(kind::DEGRADED).1, "VolumeNotExpandable");
    assert!(world.is(kind::READY));
}

#[test]
fn a_single_node_is_upgraded_and_reset() {
    let single = json!({ "topology": "SingleNode", "adminPassword": null, "backup": null });
    report("single upgrade", explore(settled(single.clone()), &[image("1.1.0")], 2, running));
    report("single back", explore(settled(single.clone()), &[image(BROKEN), image("1.0.0")], 1, running));
    report("single reset", explore(settled(single), &[generation("v2")], 0, running));
}

/// Everything that is done to one replication-manager, to two.
#[test]
fn a_standby_comes_and_goes_at_any_moment() {
    let standby = |enabled: bool| json!({ "replicationManager": { "standby": { "enabled": enabled } } });
    let start = || settled(standby(true));
    report("standby install", explore(World::new(resource(standby(true))), &[], 1, running));
    let before = settled(json!({})).pods[0].template.revision.clone();
    let restarts_nobody = move |world: &World| {
        running(world);
        assert!(world.nodes_of(Role::ReplicationManager).all(|pod| pod.template.revision == before));
    };
    report("standby on", explore(settled(json!({})), &[spec(standby(true))], 1, restarts_nobody.clone()));
    report("standby off", explore(start(), &[spec(standby(false))], 1, restarts_nobody));
    report("standby on in an upgrade", explore(settled(json!({})), &[image("1.1.0"), spec(standby(true))], 0, running));
    report("standby off in an upgrade", explore(start(), &[image("1.1.0"), spec(standby(false))], 0, running));
    let edits = [spec(json!({ "suspended": true })), spec(json!({ "suspended": false }))];
    report("standby suspended", explore(start(), &edits, 0, running));
    let grow = spec(json!({ "replicationManager": { "storage": { "size": "40Gi" } } }));
    report(
        "standby volume",
        explore(start(), &[grow], 0, |world| {
            running(world);
            assert_eq!(world.claims.iter().filter(|claim| claim.actual.as_deref() == Some("40Gi")).count(), 2);
        }),
    );
    let policy = json!({
        "deletion": { "upstream": "Delete" }, "replicationManager": { "standby": { "enabled": true } },
    });
    report("standby deletion", explore(settled(policy), &[delete()], 1, |world| assert!(world.is_gone)));
}

#[test]
fn with_two_replication_managers_one_serves_all_through_an_upgrade() {
    let standby = json!({ "replicationManager": { "standby": { "enabled": true } } });
    let overlap = json!({ "replicationManager": { "handoff": "Overlap" } });
    for (name, change) in [("standby", standby), ("overlap", overlap)] {
        let start = settled(change);
        report(&format!("{name} upgrade"), explore(start.clone(), &[image("1.1.0")], 1, running));
        report(&format!("{name} back"), explore(start.clone(), &[image(BROKEN), image("1.0.0")], 1, running));
        let handoff = |handoff: &str| spec(json!({ "replicationManager": { "handoff": handoff } }));
        let edits = [image("1.1.0"), handoff("Recreate"), handoff("Overlap")];
        report(&format!("{name} handoff"), explore(start.clone(), &edits, 0, running));

        // Without accidents there is always one at work, and a broken image never replaces it.
        for tag in ["1.1.0", BROKEN] {
            let mut world = image(tag)(&start);
            while let Some(next) = world.settle_once() {
                let serves = next.nodes_of(Role::ReplicationManager).any(|pod| pod.is_ready && !pod.is_terminating);
                assert!(serves, "{name}: nobody replicates");
                world = next;
            }
        }
    }
}

#[test]
fn two_replication_managers_are_of_one_generation() {
    let start = || settled(json!({ "replicationManager": { "standby": { "enabled": true }, "handoff": "Overlap" } }));
    report("standby reset", explore(start(), &[generation("v2")], 1, running));
    let edits = [generation("v2"), generation("v1")];
    report(
        "standby reset and back",
        explore(start(), &edits, 0, |world| {
            assert!(is_running(world) || world.is(kind::RESET_BLOCKED), "neither back nor refused");
        }),
    );
    report("standby reset, upgrade", explore(start(), &[generation("v2"), image("1.1.0")], 0, running));
    let fresh = resource(json!({ "replicationManager": { "standby": { "enabled": true } } }));
    report("standby install, reset", explore(World::new(fresh), &[generation("v2")], 0, running));
}

#[test]
fn a_standby_that_cannot_start_is_named_and_the_first_serves() {
    let mut world = settled(json!({ "replicationManager": { "standby": { "enabled": true } } }));
    let second = world.pods.iter_mut().find(|pod| pod.name == "main-1").unwrap();
    (second.is_ready, second.is_crashing) = (false, true);
    let world = world.settle();
    assert_eq!(world.condition(kind::DEGRADED), ("True".to_owned(), "StandbyDown".to_owned()));
    assert!(world.is(kind::READY) && world.is(kind::REPLICATION_MANAGER_READY));
    assert_eq!(world.status().replication_manager.unwrap().standby_ready, Some(false));
}

#[test]
fn two_replication_managers_count_in_the_budget() {
    let connections = |change: Value| settled(change).status().connection_budget[0].required;
    let one = connections(json!({}));
    for change in [json!({ "standby": { "enabled": true } }), json!({ "handoff": "Overlap" })] {
        assert_eq!(connections(json!({ "replicationManager": change })), one + 11);
    }
}

#[test]
fn more_connections_than_there_are_is_refused_until_there_are_more() {
    let tight = json!({
        "databases": { "connectionBudget": { "mode": "Enforce" }, "cvr": { "maxConns": 100 } },
    });
    // 11 of the replication-manager, 2 x 100 of one view-syncer at a rollout's peak, 10 of the reserve.
    let scale = || spec(json!({ "viewSyncer": { "replicas": 3 } }));
    let over = scale()(&settled(tight.clone())).settle();
    assert_eq!(over.condition(kind::CONNECTION_BUDGET_SATISFIED), ("False".to_owned(), "OverBudget".to_owned()));
    assert_eq!(over.deployment.as_ref().unwrap().replicas, 1, "what runs stays");
    let message =
        over.status().conditions.into_iter().find(|it| it.type_ == kind::CONNECTION_BUDGET_SATISFIED).unwrap();
    assert!(message.message.contains("6 x 100") && message.message.contains("= 621 of 500"), "{}", message.message);
    let raise = world(|world| world.max_connections = Some(1000));
    report("budget", explore(settled(tight), &[scale(), raise], 0, running));
}

#[test]
fn a_first_start_over_budget_makes_no_pods() {
    let world = World::new(resource(json!({
        "databases": { "connectionBudget": { "mode": "Enforce" }, "cvr": { "maxConns": 300 } },
    })));
    let world = world.settle();
    assert!(world.set.is_none() && world.deployment.is_none());
    assert_eq!(world.status().phase, Some(Phase::Pending));
}

#[test]
fn open_pools_are_computed_to_fit() {
    let mut start = World::new(resource(json!({ "viewSyncer": { "replicas": 4 } })));
    start.max_connections = Some(34);
    let world = start.settle();
    running(&world);
    // 8 + 3 + 8 x 1 + 10 = 29 of 34; with 2 each it would be 37. The log's connections cannot be fewer.
    let pools = world.status().pools;
    assert_eq!((pools["cvr"], pools["change"]), (1, 3));
    assert_eq!(world.status().connection_budget[0].required, 29);
    assert!(world.is(kind::CONNECTION_BUDGET_SATISFIED));
}

#[test]
fn more_view_syncers_that_fit_restart_nobody() {
    let start = settled(json!({}));
    let before = start.nodes_of(Role::ReplicationManager).next().unwrap().template.revision.clone();
    let more = spec(json!({ "viewSyncer": { "replicas": 40 } }))(&start).settle();
    running(&more);
    assert_eq!(more.status().pools, start.status().pools);
    assert!(more.nodes_of(Role::ReplicationManager).all(|pod| pod.template.revision == before));
}

fn annotate(value: impl Fn(&World) -> String + 'static) -> Edit {
    world(move |world| {
        let release = (annotation::RELEASE_UPGRADE.to_owned(), value(world));
        world.change(|cache| cache.metadata.annotations = Some([release].into()));
    })
}

#[test]
fn a_gate_waits_for_a_person() {
    let gated = json!({ "upgrade": { "pauseAfterReplicationManager": true } });
    let waiting = image("1.1.0")(&settled(gated)).settle();
    assert_eq!(waiting.condition(kind::UPGRADE_BLOCKED), ("True".to_owned(), "WaitingForRelease".to_owned()));
    let tags = |world: &World, role| -> Vec<bool> {
        world.nodes_of(role).map(|pod| pod.template.image.ends_with(":1.1.0")).collect()
    };
    assert_eq!((tags(&waiting, Role::ReplicationManager), tags(&waiting, Role::ViewSyncer)), (vec![true], vec![false]));
    running(&annotate(|world| world.status().upgrade.unwrap().target)(&waiting).settle());

    let manual = image("1.1.0")(&settled(json!({ "upgrade": { "strategy": "Manual" } }))).settle();
    assert_eq!(tags(&manual, Role::ReplicationManager), [false]);
    let half = annotate(|world| world.status().upgrade.unwrap().target)(&manual).settle();
    assert_eq!((tags(&half, Role::ReplicationManager), tags(&half, Role::ViewSyncer)), (vec![true], vec![false]));
    running(&annotate(|world| format!("{}/view-syncers", world.status().upgrade.unwrap().target))(&half).settle());

    // Going back needs nobody's leave.
    let manual = image(BROKEN)(&settled(json!({ "upgrade": { "strategy": "Manual" } }))).settle();
    let broken = annotate(|world| world.status().upgrade.unwrap().target)(&manual).settle();
    assert!(broken.is(kind::UPGRADE_STALLED));
    running(&image("1.0.0")(&broken).settle());
}

#[test]
fn a_downgrade_and_a_jump_are_refused_until_allowed() {
    let start = settled(json!({ "image": { "tag": "2.0.0" } }));
    for (tag, reason) in [("1.9.0", "DowngradeNotAllowed"), ("4.0.0", "VersionSkew")] {
        let refused = image(tag)(&start).settle();
        assert_eq!(refused.condition(kind::UPGRADE_BLOCKED), ("True".to_owned(), reason.to_owned()));
        assert!(refused.pods.iter().all(|pod| pod.template.image.ends_with(":2.0.0")));
        running(&image("2.0.0")(&refused).settle());
    }
    let allowed = json!({ "image": { "tag": "1.9.0" }, "upgrade": { "allowDowngrade": true } });
    running(&edit(&start, allowed).settle());
}

#[test]
fn an_upgrade_waits_for_a_database_that_answers() {
    let mut start = settled(json!({}));
    start.is_upstream_up = false;
    let blocked = image("1.1.0")(&start).settle();
    assert_eq!(blocked.condition(kind::UPGRADE_BLOCKED).1, "Unreachable");
    let up = world(|world| world.is_upstream_up = true);
    report("database", explore(start, &[image("1.1.0"), up], 0, running));
}

#[test]
fn retired_generations_are_deleted_and_no_other() {
    let retention = json!({
        "generation": "v1",
        "backup": { "retention": { "enabled": true, "keepGenerations": 0, "minAge": "1h" } },
    });
    let verdict = |world: &World| {
        running(world);
        let retired = world.status().retired_generations;
        let states: Vec<_> = retired.iter().map(|it| (it.name.as_str(), it.state)).collect();
        assert_eq!(states, [("v1", RetiredState::Deleted)]);
        assert_eq!(world.jobs.len(), 1);
    };
    report("retention", explore(settled(retention.clone()), &[generation("v10")], 1, verdict));
    let edits = [generation("v10"), generation("v1"), Box::new(World::pass_time) as Edit];
    report("retention, taken back", explore(settled(retention), &edits, 0, |_| {}));
}

#[test]
fn a_generation_that_was_used_is_refused() {
    let moved = generation("v2")(&settled(json!({}))).settle();
    running(&moved);
    let refused = generation("v1")(&moved).settle();
    assert_eq!(refused.condition(kind::RESET_BLOCKED), ("True".to_owned(), "GenerationRetired".to_owned()));
    assert!(refused.pods.iter().all(|pod| pod.template.generation == "v2"));
}

#[test]
fn children_that_are_not_wanted_any_longer_go() {
    let start = settled(json!({
        "ingress": { "enabled": true, "provider": "Traefik", "hosts": ["zero.example.com"] },
        "viewSyncer": { "autoscaling": { "minReplicas": 1, "maxReplicas": 3 } },
    }));
    let has = |world: &World, kind: &str| world.others.iter().any(|(known, _)| known == kind);
    assert!(has(&start, "Ingress") && has(&start, "HorizontalPodAutoscaler") && has(&start, "NetworkPolicy"));
    let less = json!({
        "ingress": { "enabled": false }, "networkPolicy": { "enabled": false }, "viewSyncer": { "autoscaling": null },
    });
    let world = edit(&start, less).settle();
    running(&world);
    assert!(!has(&world, "Ingress") && !has(&world, "HorizontalPodAutoscaler") && !has(&world, "NetworkPolicy"));
    assert!(has(&world, "Service") && has(&world, "Secret"));
}
