//! A resource goes: whatever was made for it is released, or it is said what is left; and nothing is waited for in vain.

use serde_json::{Value, json};

use crate::explore::{delete, explore, image, report, settled, world};
use crate::model::{World, resource};

#[test]
fn deletion_never_hangs() {
    let policy = json!({
        "deletion": { "upstream": "Delete" },
        "backup": { "retention": { "deleteOnRemoval": true } },
    });
    let gone = |world: &World| assert!(world.is_gone, "it hangs");
    report("deletion", explore(settled(policy.clone()), &[image("1.1.0"), delete()], 0, gone));
    report("deletion, accidents", explore(settled(policy), &[delete()], 1, gone));
}

/// With the file, the release or the namespace that they are in, Secrets go before the resource.
#[test]
fn the_slot_is_dropped_though_the_secret_went_first() {
    let policy = || json!({ "deletion": { "upstream": "Delete" } });
    let lose = || world(|world| world.secrets.clear());
    // Whatever was made is released; a copy that is not needed any longer is gone.
    let released = |world: &World| {
        assert!(world.is_gone && !world.is_kept, "it hangs, or leaves a copy");
        assert!(world.is_released || world.sets_made == 0, "a slot is left");
    };
    report("secret first", explore(settled(policy()), &[lose(), delete()], 0, released));
    report("secret last", explore(settled(policy()), &[delete(), lose()], 0, released));
    report("secret in the beginning", explore(World::new(resource(policy())), &[lose(), delete()], 0, released));
    let leave = world(|world| {
        world.secrets.clear();
        world.is_leaving = true;
    });
    report("namespace", explore(settled(policy()), &[leave, delete()], 0, released));
}

/// Events of one deletion, and how long it takes, where each look is 10 s after the one before.
fn deletion(mut world: World) -> (u64, Vec<String>) {
    world = delete()(&world);
    let mut events = Vec::new();
    for round in 0..600 {
        let mut observed = world.observe();
        let start = observed.now;
        observed.now = start.checked_add(k8s_openapi::jiff::SignedDuration::from_secs(10 * round)).unwrap();
        let plan = zero_cache_operator::plan::plan(world.cache(), &observed);
        events.extend(plan.events.iter().map(|event| format!("{}: {}", event.reason, event.message)));
        world.change(|cache| cache.status = Some(plan.status.clone()));
        for action in &plan.actions {
            world.act(action);
        }
        if world.is_gone {
            return (10 * u64::try_from(round).unwrap(), events);
        }
        while let Some((_, next)) = world.happenings().into_iter().next() {
            world = next;
        }
    }
    panic!("it hangs: {events:#?}");
}

#[test]
fn nothing_is_waited_for_where_nothing_was_made() {
    let policy = |more: Value| {
        let mut spec = json!({ "deletion": { "upstream": "Delete" } });
        crate::model::merge(&mut spec, more);
        resource(spec)
    };
    // A Secret that never existed: no pod, no slot, no backup.
    let mut never = World::new(policy(json!({ "backup": { "retention": { "deleteOnRemoval": true } } })));
    never.secrets.clear();
    let (seconds, events) = deletion(never.settle());
    assert!(seconds <= 60, "{seconds} s: {events:#?}");
    assert!(!events.iter().any(|event| event.starts_with("NotReleased")), "{events:#?}");

    // A mistyped host: pods ran, and never reached it.
    let mut mistyped = World::new(policy(json!({})));
    mistyped.is_upstream_up = false;
    let mistyped = mistyped.settle();
    assert!(mistyped.set.is_some() && mistyped.status().upstream.is_none());
    let (seconds, events) = deletion(mistyped);
    assert!((30..=120).contains(&seconds), "{seconds} s: {events:#?}");
    assert!(events.iter().any(|event| event.contains("never reached")), "{events:#?}");

    // A server that was reached and is away now may come back: its slot is there.
    let mut away = World::new(policy(json!({}))).settle();
    away.is_upstream_up = false;
    let (seconds, events) = deletion(away.clone());
    assert!(seconds >= 1800 && events.iter().any(|event| event.contains("look for a replication slot")), "{events:#?}");
    // Unless others wait for it.
    away.is_leaving = true;
    let (seconds, events) = deletion(away);
    assert!(seconds <= 180 && events.iter().any(|event| event.contains("look for a replication slot")), "{events:#?}");
}

#[test]
fn backups_that_nobody_can_delete_are_told_of() {
    let policy = json!({
        "deletion": { "upstream": "Delete" },
        "backup": {
            "retention": { "deleteOnRemoval": true },
            "credentialsSecretRef": { "name": "db", "accessKeyIdKey": "id", "secretAccessKeyKey": "key" },
        },
    });
    let mut world = settled(policy);
    world.secrets.clear();
    let (seconds, events) = deletion(world);
    assert!(seconds <= 120, "{seconds} s: {events:#?}");
    assert!(events.iter().any(|event| event.contains("Secret db with key id does not exist")), "{events:#?}");
}
