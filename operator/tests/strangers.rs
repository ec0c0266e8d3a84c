//! Objects of others that have the names of ours.

use crds::conditions::kind;
use serde_json::json;

use crate::explore::{explore, image, report, running, settled, world};
use crate::model::{World, resource};

/// Whatever of an application has a name that is needed: it is neither changed nor removed, it is named, and once it is gone
/// everything is made.
#[test]
fn what_is_another_s_is_left_alone_and_named() {
    let spec = json!({
        "ingress": { "enabled": true, "provider": "Traefik", "hosts": ["zero.example.com"] },
        "viewSyncer": { "autoscaling": { "minReplicas": 1, "maxReplicas": 3 } },
    });
    let all = [
        ("ServiceAccount", "shop", false),
        ("Service", "shop-rm", false),
        ("Service", "shop-rm-headless", false),
        ("Service", "shop-vs", false),
        ("NetworkPolicy", "shop-rm", false),
        ("StatefulSet", "shop-rm", false),
        ("Deployment", "shop-vs", false),
        ("PodDisruptionBudget", "shop-vs", true),
        ("HorizontalPodAutoscaler", "shop-vs", true),
        ("Ingress", "shop", true),
    ];
    for (kind, name, do_pods_run) in all {
        let mut start = World::new(resource(spec.clone()));
        start.strangers = vec![(kind.to_owned(), name.to_owned())];
        let world = start.settle();
        assert_eq!(world.condition(kind::READY), ("False".to_owned(), "NameTaken".to_owned()), "{kind} {name}");
        let ready = world.status().conditions.into_iter().find(|it| it.type_ == kind::READY).unwrap();
        assert!(ready.message.contains(&format!("{kind} {name}")), "{}", ready.message);
        assert_eq!(!world.pods.is_empty(), do_pods_run, "{kind} {name}");
        let is_made = |it: &str| world.others.iter().any(|(kind, _)| kind == it);
        assert!(is_made("Service") && (is_made("ServiceAccount") || kind == "ServiceAccount"), "the rest is made");
        let mut gone = world;
        gone.strangers.clear();
        running(&gone.settle());
    }
}

#[test]
fn a_stranger_comes_and_goes_at_any_moment_and_deletion_leaves_it() {
    let come = |kind: &'static str, name: &'static str| {
        world(move |world| {
            world.others.retain(|it| *it != (kind.to_owned(), name.to_owned()));
            world.strangers.push((kind.to_owned(), name.to_owned()));
        })
    };
    let go = || world(|world| world.strangers.clear());
    report("stranger", explore(World::new(resource(json!({}))), &[come("Service", "shop-rm"), go()], 0, running));
    let edits = [come("Service", "shop-vs"), image("1.1.0"), go()];
    report("stranger in an upgrade", explore(settled(json!({})), &edits, 0, running));
}
