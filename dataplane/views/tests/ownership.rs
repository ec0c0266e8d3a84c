//! Client groups that move between nodes.

use std::time::{Duration, Instant};

use rows::Version;
use serde_json::json;
use testkit::pgbouncer::PgBouncer;
use views::Ending;

use crate::client::{Client, PATIENCE, Poke, Seen, Store, del, put};
use crate::cluster::{Cluster, eventually, rehomed};
use crate::data::all;
use crate::sync::A_WHILE;
use crate::world::{World, again, context, init, issue, shared};

/// A client of group `g` on node 0 that holds the issues of owner `a`.
async fn settled(cluster: &mut Cluster) -> Client {
    settled_on(cluster, 0).await
}

async fn settled_on(cluster: &mut Cluster, n: usize) -> Client {
    cluster.api().ask("mine", all("issue").by("owner", "a"));
    cluster.api().ask("theirs", all("issue").by("owner", "b"));
    for n in 0..4 {
        cluster.issue(&format!("i{n}"), "a", n).await;
    }
    cluster.issue("b1", "b", 1).await;
    let mut c = cluster.nodes[n].world.connect("g", "c1", Store::default(), init(&[put("mine", 60_000)]));
    c.until("the query", |s| s.got.contains("mine") && s.rows.len() == 4).await;
    c
}

/// Connects as often as it is told to; returns the first poke.
async fn arrive(node: &World, store: &Store) -> (Client, Poke) {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let mut c = node.connect("g", "c1", store.clone(), again(&[]));
        match c.next().await {
            Seen::Poke(poke) => return (c, poke),
            Seen::Message(_, error) => tokio::time::sleep(Duration::from_millis(rehomed(&error).max(5))).await,
            // What it was told does not hold any more.
            Seen::Close(_) => {}
        }
        assert!(tokio::time::Instant::now() < until, "never served");
    }
}

fn connect(cluster: &Cluster, n: usize, store: Store) -> Client {
    cluster.nodes[n].world.connect("g", "c1", store, again(&[]))
}

#[tokio::test]
async fn a_group_that_lands_elsewhere_is_sent_the_difference() {
    let mut cluster = Cluster::new(3).await;
    let mut c = settled(&mut cluster).await;
    let mut past = vec![c.store.clone()];
    // Each node serves it for a while; all share the query, one after the other, and one has it long before.
    let mut warm = cluster.nodes[2].world.connect("other", "c1", Store::default(), init(&[put("mine", 60_000)]));
    warm.until("the query", |s| s.got.contains("mine")).await;
    for (round, n) in [1, 2, 0, 1, 0, 2].into_iter().enumerate() {
        let store = c.cut();
        let (new, changed) = (format!("n{round}"), format!("i{}", round % 4));
        let change = cluster.source.put("issue", issue(&new, "a", 1));
        cluster.everywhere(vec![change]).await;
        let change = cluster.source.put("issue", issue(&changed, "a", 100 + round as i64));
        cluster.everywhere(vec![change]).await;
        let gone = round.checked_sub(1).map(|before| issue(&format!("n{before}"), "a", 1));
        if let Some(gone) = &gone {
            let change = cluster.source.del("issue", gone);
            cluster.everywhere(vec![change]).await;
        }
        let (joined, poke) = arrive(&cluster.nodes[n].world, &store).await;
        c = joined;
        assert_eq!(poke.keys("put"), [format!("issue/\"{changed}\""), format!("issue/\"{new}\"")]);
        let dels: Vec<String> = gone.iter().map(|g| format!("issue/{}", g["id"])).collect();
        assert_eq!(poke.keys("del"), dels);
        assert!(poke.got().is_empty());
        assert_eq!(c.store.rows, cluster.source.expected([&all("issue").by("owner", "a")]));
        past.push(c.store.clone());
    }
    c.cut();
    // Cookies of all nodes, in any order, at any node.
    for (n, store) in past.into_iter().enumerate() {
        let (c, _) = arrive(&cluster.nodes[n % 3].world, &store).await;
        assert_eq!(c.store.rows, cluster.source.expected([&all("issue").by("owner", "a")]));
        c.cut();
    }
}

#[tokio::test]
async fn nothing_changed_is_nothing_sent() {
    let mut cluster = Cluster::new(2).await;
    let c = settled(&mut cluster).await;
    let mut c = connect(&cluster, 1, c.cut());
    let poke = c.poke().await;
    assert!(poke.parts.is_empty(), "{poke:?}");
    assert_eq!(cluster.metric(1).take_overs.get(), 1);
    // What it is told from now on is as if it had always been here.
    cluster.issue("new", "a", 1).await;
    assert_eq!(c.poke().await.keys("put"), [r#"issue/"new""#]);
}

#[tokio::test]
async fn the_loser_sends_its_clients_away() {
    let mut cluster = Cluster::new(2).await;
    let mut first = settled(&mut cluster).await;
    let mut second = cluster.nodes[1].world.connect("g", "c2", first.store.clone(), again(&[put("mine", 60_000)]));
    second.until("its desire", |s| s.desired.contains_key("c2")).await;
    // Without any change of data: a heartbeat finds out.
    let (error, _) = first.refused().await;
    assert_eq!(rehomed(&error), 0, "another node serves it now");
    assert_eq!(cluster.metric(0).rehomes.with_label_values(&["lost"]).get(), 1);
    assert!(cluster.metric(0).cvr_flushes_fenced.get() > 0);
    eventually("the gauge", async || cluster.metric(0).owned_groups.get() == 0).await;
    // It comes to the same node as the other, and both live on.
    let mut first = connect(&cluster, 1, first.store.clone());
    first.poke().await;
    cluster.issue("new", "a", 1).await;
    for c in [&mut first, &mut second] {
        c.until("the row", |s| s.rows.len() == 5).await;
    }
}

#[tokio::test]
async fn what_a_stopped_node_wrote_late_neither_counts_nor_is_promised() {
    let mut cluster = Cluster::new(2).await;
    let mut paused = settled(&mut cluster).await;
    cluster.hold(0);
    // Its clients are sent the beginning of a poke, and it is about to store a changed record.
    cluster.issue("late", "a", 1).await;
    paused.change(json!([put("theirs", 60_000)]));
    paused.silent(A_WHILE).await;
    // Meanwhile another node takes the group, and the record becomes another.
    let mut c = connect(&cluster, 1, paused.store.clone());
    c.until("the row", |s| s.rows.len() == 5).await;
    c.change(json!([del("mine")]));
    c.until("no desire", |s| s.desired["c1"].is_empty()).await;
    let record = cluster.text("SELECT record FROM cvr.groups WHERE id = 'g'").await;
    let bound: i64 = cluster.query("SELECT bound FROM cvr.groups WHERE id = 'g'").await[0].get(0);
    let mark = cluster.query("SELECT version FROM cvr.nodes ORDER BY id LIMIT 1").await[0].get::<_, i64>(0);
    assert_eq!(bound, mark);

    let before = paused.store.clone();
    cluster.release(0);
    let (error, _) = paused.refused().await;
    assert_eq!(rehomed(&error), 0);
    assert_eq!(paused.store, before, "no poke came to its end");
    assert_eq!(cluster.text("SELECT record FROM cvr.groups WHERE id = 'g'").await, record);
    let mark_now = cluster.query("SELECT version FROM cvr.nodes ORDER BY id LIMIT 1").await[0].get::<_, i64>(0);
    assert!(mark_now >= mark);
    let mut paused = cluster.nodes[1].world.connect("g", "c2", before, again(&[]));
    paused.until("what it missed", |s| s.rows.len() == 5 && s.desired["c1"].is_empty()).await;
}

#[tokio::test]
async fn cookies_of_the_new_owner_exceed_all_that_the_old_one_may_yet_send() {
    let mut cluster = Cluster::new(2).await;
    let mut ahead = settled(&mut cluster).await;
    let store = ahead.store.clone();
    // Node 0 is ahead of node 1, and one client has seen it.
    let change = cluster.source.put("issue", issue("ahead", "a", 1));
    cluster.commit(vec![change]).await;
    cluster.advance(0, 1).await;
    ahead.until("the row", |s| s.rows.len() == 5).await;
    // Another client of the group, which has not seen it, comes to node 1 with a change.
    let mut behind = cluster.nodes[1].world.connect("g", "c2", store, again(&[put("theirs", 60_000)]));
    assert_eq!(rehomed(&ahead.refused().await.0), 0);
    behind.silent(A_WHILE).await;
    cluster.advance(1, 1).await;
    behind.until("all", |s| s.got.contains("theirs") && s.rows.len() == 6).await;
    // The one that was ahead is told of the change, whose cookie is greater than its own.
    let mut ahead = connect(&cluster, 1, ahead.store.clone());
    ahead.until("the change", |s| s.got.contains("theirs") && s.rows.len() == 6).await;
}

#[tokio::test]
async fn a_node_that_is_behind_waits_and_then_sends_elsewhere() {
    let mut cluster = Cluster::new(2).await;
    let mut c = settled(&mut cluster).await;
    let owner = cluster.owner("g").await;
    let change = cluster.source.put("issue", issue("ahead", "a", 1));
    cluster.commit(vec![change]).await;
    cluster.advance(0, 1).await;
    c.until("the row", |s| s.rows.len() == 5).await;
    let mut early = connect(&cluster, 1, c.store.clone());
    early.silent(A_WHILE).await;
    assert_eq!(cluster.owner("g").await, owner, "a node that cannot serve a client does not take its group");
    cluster.advance(1, 1).await;
    assert!(early.poke().await.parts.is_empty());
    rehomed(&c.refused().await.0);
    // Never older rows, and no error that a user sees.
    let change = cluster.source.put("issue", issue("ahead", "a", 2));
    cluster.commit(vec![change]).await;
    cluster.advance(1, 1).await;
    early.until("the change", |s| s.rows.values().any(|row| row["id"] == "ahead" && row["n"] == 2)).await;
    let mut c = connect(&cluster, 0, early.store.clone());
    let (error, _) = c.refused().await;
    assert!(rehomed(&error) >= 500, "it comes back, but not at once: {error}");
    // Somebody with an older cookie brought the group here: it is given up again.
    let older = early.past[0].clone();
    let mut c = connect(&cluster, 0, older);
    let (error, _) = c.refused().await;
    assert!(rehomed(&error) >= 500, "{error}");
    eventually("the group is free", async || cluster.owner("g").await.is_none()).await;
}

#[tokio::test]
async fn an_older_connect_does_not_take_the_group() {
    let mut cluster = Cluster::new(2).await;
    let mut c = settled(&mut cluster).await;
    let owner = cluster.owner("g").await;
    let long_ago = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
    let stale = cluster.nodes[1].world.socket_accepted("g", "c1", c.store.clone(), None, 1 << 20, long_ago);
    let mut stale = stale;
    stale.init(&again(&[]), context(None));
    rehomed(&stale.refused().await.0);
    assert_eq!(cluster.owner("g").await, owner);
    cluster.issue("new", "a", 1).await;
    c.until("the row", |s| s.rows.len() == 5).await;
}

#[tokio::test]
async fn a_contested_group_stays_for_longer_each_time() {
    let mut cluster = Cluster::stopped(2).await;
    for node in &mut cluster.nodes {
        node.world.limits.contested_max = Duration::from_secs(4);
        node.world.limits.node_live = Duration::from_secs(20);
        node.world.start().await;
    }
    let mut open = settled(&mut cluster).await;
    let mut waited = Vec::new();
    // Two tabs that are always sent to different nodes, each coming back whenever it is sent away.
    for round in 0..5 {
        let started = Instant::now();
        let (c, _) = arrive(&cluster.nodes[(round + 1) % 2].world, &open.store).await;
        waited.push(started.elapsed());
        let told = cluster.metric((round + 1) % 2).rehomes.with_label_values(&["elsewhere"]).get();
        assert!(round > 0 || told == 0, "the first move is at once");
        rehomed(&open.refused().await.0);
        open = c;
    }
    for (n, at_least) in [(2, 350), (3, 800), (4, 1_700)] {
        assert!(waited[n] >= Duration::from_millis(at_least), "{waited:?}");
    }
    assert!(waited[4] < Duration::from_millis(4_500), "nobody waits for ever: {waited:?}");
    assert!(cluster.metric(0).rehomes.with_label_values(&["elsewhere"]).get() > 0);
}

#[tokio::test]
async fn tabs_that_are_sent_anywhere_meet() {
    let mut cluster = Cluster::new(3).await;
    let first = settled(&mut cluster).await;
    let store = first.cut();
    let mut tabs: Vec<(String, Store, Option<Client>)> =
        (0..4).map(|n| (format!("t{n}"), store.clone(), None)).collect();
    let mut turn = 0;
    let mut settled_since = tokio::time::Instant::now();
    let until = settled_since + Duration::from_secs(20);
    while settled_since.elapsed() < Duration::from_millis(1_500) {
        assert!(tokio::time::Instant::now() < until, "the tabs never meet");
        for (id, store, open) in &mut tabs {
            match open {
                None => {
                    // Round robin over all tabs is as unlucky as routing can be, but for its jitter.
                    turn += rand::random_range(1..3);
                    let node = &cluster.nodes[turn % 3].world;
                    *open = Some(node.connect("g", id, store.clone(), again(&[put("mine", 60_000)])));
                    settled_since = tokio::time::Instant::now();
                }
                Some(client) => match client.next_within(Duration::from_millis(20)).await {
                    Some(Seen::Message(_, error)) => {
                        tokio::time::sleep(Duration::from_millis(rehomed(&error).min(50))).await;
                        *store = client.store.clone();
                        *open = None;
                    }
                    Some(Seen::Close(_)) => *open = None,
                    Some(Seen::Poke(_)) | None => {}
                },
            }
        }
    }
}

#[tokio::test]
async fn a_drain_frees_its_groups_one_after_the_other() {
    let mut cluster = Cluster::new(2).await;
    let c = settled(&mut cluster).await;
    let mut clients = vec![c];
    for n in 0..6 {
        let group = format!("g{n}");
        let mut c = cluster.nodes[0].world.connect(&group, "c1", Store::default(), init(&[put("mine", 60_000)]));
        c.until("the query", |s| s.got.contains("mine")).await;
        clients.push(c);
    }
    cluster.issue("on its way", "a", 1).await;
    let handle = cluster.nodes[0].world.handle();
    let (done, mut drained) = tokio::sync::oneshot::channel();
    // So long for each that the order shows.
    let within = Duration::from_millis(140);
    handle.commands.send(views::api::Command::Drain { done, within }).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(drained.try_recv().is_err(), "not all at once");
    let mut late = cluster.nodes[0].world.connect("new", "c1", Store::default(), init(&[put("mine", 60_000)]));
    let wait = rehomed(&late.refused().await.0);
    assert!(wait <= 1_000, "at once: {wait}");
    tokio::time::timeout(PATIENCE, drained).await.expect("drained").unwrap();
    for c in &mut clients {
        let seen = c.drain(A_WHILE).await;
        assert!(matches!(seen.last(), Some(Seen::Close(Some((1001, _))))), "without an error: {seen:?}");
        assert_eq!(c.store.rows.len(), 5, "what was on its way arrived");
    }
    assert_eq!(cluster.nodes[0].world.ended().await, Ending::Drained);
    let owned = cluster.query("SELECT id FROM cvr.groups WHERE owner IS NOT NULL").await;
    assert!(owned.is_empty(), "{owned:?}");
    assert_eq!(cluster.count("nodes").await, 1, "the node has signed off");
    let mut c = connect(&cluster, 1, clients[0].store.clone());
    assert!(c.poke().await.parts.is_empty());
    assert_eq!(cluster.metric(1).take_overs.get(), 0, "nothing had to be taken");
}

#[tokio::test]
async fn another_copy_of_the_database() {
    let mut cluster = Cluster::new(1).await;
    let c = settled(&mut cluster).await;
    let first = c.store.clone();
    let mut c = c;
    cluster.issue("i0", "a", 50).await;
    c.poke().await;
    // The first node's replica is rebuilt: a new copy of what is upstream now.
    let newer = cluster.add("copy-2", cluster.source.version + 5).await;
    cluster.nodes[newer].applied = usize::MAX;
    let rows: Vec<serde_json::Value> = cluster.source.model["issue"].values().cloned().collect();
    let node = &mut cluster.nodes[newer].world;
    let changes = rows.iter().map(|row| node.put("issue", row.clone())).collect();
    let gone = node.del("issue", &issue("i3", "a", 3));
    node.apply(changes).await;
    node.apply(vec![gone]).await;
    node.start().await;
    cluster.nodes[newer].applied = 0;
    // Rows are sent again, and what is gone is deleted, without starting over.
    let mut c2 = connect(&cluster, newer, c.store.clone());
    let poke = c2.poke().await;
    assert_eq!((poke.keys("put").len(), poke.keys("del")), (3, vec![r#"issue/"i3""#.to_owned()]));
    assert!(poke.got().is_empty());
    assert_eq!(rehomed(&c.refused().await.0), 0);
    // The node with the former copy does not take the group back while the newer copy is served.
    let mut back = connect(&cluster, 0, first.clone());
    assert!(rehomed(&back.refused().await.0) > 0);
    // When nobody has that copy any more (the database itself went back), clients start over.
    let store = c2.cut();
    cluster.nodes[newer].world.kill();
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut old = connect(&cluster, 0, first.clone());
    assert_eq!(old.refused().await.0["kind"], "ClientNotFound");
    let mut new = cluster.nodes[0].world.connect("g", "c9", Store::default(), init(&[put("mine", 60_000)]));
    new.until("its rows", |s| s.rows.len() == 4).await;
    // Also those that come after the group is made anew, whose cookies look usable.
    let mut old = connect(&cluster, 0, first);
    assert_eq!(old.refused().await.0["kind"], "ClientNotFound");
    let mut old = connect(&cluster, 0, store);
    let kind = old.refused().await.0["kind"].clone();
    assert!(kind == "InvalidConnectionRequestBaseCookie" || kind == "ClientNotFound", "{kind}");
    new.silent(A_WHILE).await;
}

#[tokio::test]
async fn nothing_of_dead_nodes_leaks_and_nothing_needed_goes() {
    let mut cluster = Cluster::stopped(3).await;
    for node in &mut cluster.nodes {
        node.world.limits.node_dead = Duration::from_millis(700);
        node.world.limits.purge_interval = Duration::from_millis(50);
        node.world.limits.merge_interval = Duration::from_millis(30);
        node.world.limits.merge_deltas = 3;
        node.world.start().await;
    }
    let mut c = settled(&mut cluster).await;
    let mut past = Vec::new();
    for n in 0..20 {
        cluster.issue(&format!("i{}", n % 6), "a", 100 + n).await;
        c.poke().await;
        past.push(c.store.clone());
    }
    let mut idle = cluster.nodes[0].world.connect("idle", "c1", Store::default(), init(&[put("theirs", 1_000)]));
    idle.until("the query", |s| s.got.contains("theirs")).await;
    let idle = idle.cut();
    c.cut();
    assert_eq!(cluster.count("lineages").await, 2);
    cluster.nodes[0].world.kill();
    // Others notice, free its groups and look after its histories.
    eventually("the node is struck off", async || cluster.count("nodes").await == 2).await;
    assert_eq!(cluster.owner("g").await, None);
    eventually("its deltas are merged", async || cluster.count("deltas").await < 6).await;
    assert_eq!(cluster.count("lineages").await, 2, "named by groups");
    let expected = cluster.source.expected([&all("issue").by("owner", "a")]);
    for (n, store) in past.iter().step_by(3).enumerate() {
        let (c, _) = arrive(&cluster.nodes[1 + n % 2].world, store).await;
        assert_eq!(c.store.rows, expected);
        c.cut();
    }
    let mut back = cluster.nodes[2].world.connect("idle", "c1", idle, again(&[]));
    assert!(back.poke().await.parts.is_empty());
    back.cut();
    // What no group names any more goes, if its node is gone.
    eventually("its histories are gone", async || {
        // A node that has just let its clients go may still write their group's record.
        cluster.query("DELETE FROM cvr.groups").await;
        cluster
            .query("SELECT id FROM cvr.lineages l WHERE NOT EXISTS (SELECT FROM cvr.nodes n WHERE n.id = l.node)")
            .await
            .is_empty()
    })
    .await;
    assert_eq!(
        cluster
            .query(
                "SELECT version FROM cvr.deltas d WHERE NOT EXISTS (SELECT FROM cvr.lineages l WHERE l.id = d.lineage)"
            )
            .await
            .len(),
        0
    );
}

#[tokio::test]
async fn a_node_that_was_struck_off_stops() {
    let mut cluster = Cluster::stopped(2).await;
    for node in &mut cluster.nodes {
        node.world.limits.node_dead = Duration::from_millis(400);
        node.world.limits.purge_interval = Duration::from_millis(50);
        node.world.start().await;
    }
    let mut c = settled(&mut cluster).await;
    cluster.hold(0);
    cluster.issue("late", "a", 1).await;
    eventually("the node is struck off", async || cluster.count("nodes").await == 1).await;
    let mut c2 = connect(&cluster, 1, c.store.clone());
    c2.until("the row", |s| s.rows.len() == 5).await;
    let before = c.store.clone();
    cluster.release(0);
    let ending = cluster.nodes[0].world.ended().await;
    assert!(matches!(&ending, Ending::Failed(reason) if reason.contains("for dead")), "{ending:?}");
    while let Ok(Some(frame)) = tokio::time::timeout(A_WHILE, c.outbox.recv()).await {
        let views::api::Frame::Text(text) = frame else { continue };
        assert!(!text.starts_with(b"[\"pokeEnd\""), "nothing is promised any more");
    }
    assert_eq!(c.store, before);
}

#[tokio::test]
async fn many_nodes_may_start_at_once() {
    let mut cluster = Cluster::stopped(8).await;
    let mut worlds: Vec<&mut World> = cluster.nodes.iter_mut().map(|node| &mut node.world).collect();
    futures_util::future::join_all(worlds.iter_mut().map(|world| world.start())).await;
    assert_eq!(cluster.count("nodes").await, 8);
}

/// Through Debian's pooler in transaction mode: no named statements, nothing that stays in a session.
#[tokio::test]
async fn everything_works_through_a_pooler() {
    for connections in [1, 2] {
        let pooler = PgBouncer::start(shared(), 2).unwrap();
        let mut nodes = Vec::new();
        for _ in 0..2 {
            let mut node = World::stopped(&pooler.url("postgres"));
            node.cvr_connections_max = connections;
            node.limits = crate::cluster::quick();
            node.limits.merge_deltas = 3;
            node.limits.merge_interval = Duration::from_millis(20);
            node.limits.purge_interval = Duration::from_millis(50);
            node.limits.history_entries = 1;
            node.limits.materialisation_idle = Duration::from_millis(50);
            node.limits.group_idle = Duration::from_millis(50);
            nodes.push(node);
        }
        nodes[1].cvr_schema = nodes[0].cvr_schema.clone();
        nodes[1].api = nodes[0].api.clone();
        nodes[0].api.ask("mine", all("issue").by("owner", "a"));
        for node in &mut nodes {
            node.start().await;
        }
        let mut store = Store::default();
        for round in 0..12 {
            let version = 20 + round * 10;
            for node in &mut nodes {
                let change = node.put("issue", issue(&format!("i{}", round % 5), "a", round as i64));
                node.apply_at(version, vec![change]).await;
            }
            let node = &nodes[round as usize % 2];
            let mut c = if round == 0 {
                node.connect("g", "c1", store, init(&[put("mine", 60_000)]))
            } else {
                arrive(node, &store).await.0
            };
            let expected = node.expected([&all("issue").by("owner", "a")]);
            c.until("its rows", |s| s.got.contains("mine") && s.rows == expected).await;
            assert!(c.store.cookie.as_deref() >= Some(Version::new(version).to_string().as_str()));
            store = c.cut();
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
        for node in &mut nodes {
            assert_eq!(node.metrics().cvr_flush_failures.get(), 0, "with {connections} connections");
            node.drain().await;
        }
    }
}

#[tokio::test]
async fn a_group_that_was_asked_for_too_early_is_asked_for_again() {
    let mut cluster = Cluster::new(2).await;
    cluster.api().ask("mine", all("issue").by("owner", "a"));
    // Its socket ends before it says anything: the node knows that nobody knows the group.
    cluster.nodes[0].world.socket("g", "c0", Store::default(), None, 1 << 20).cut();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let c = settled_on(&mut cluster, 1).await;
    let mut c = connect(&cluster, 0, c.cut());
    assert!(c.poke().await.parts.is_empty());
}

#[tokio::test]
async fn two_nodes_that_make_a_group_at_once_agree() {
    let cluster = Cluster::new(2).await;
    // Nobody judges them, so that both claim the group as they come and know that it is new. The answers to what they store
    // come later.
    cluster.api().with(|api| api.unconfigured = true);
    let mut a = cluster.nodes[0].world.socket("g", "c1", Store::default(), None, 1 << 20);
    let mut b = cluster.nodes[1].world.socket("g", "c2", Store::default(), None, 1 << 20);
    tokio::time::sleep(Duration::from_millis(100)).await;
    a.init(&init(&[put("mine", 60_000)]), context(None));
    b.init(&init(&[put("mine", 60_000)]), context(None));
    let (a, b) = (a.next().await, b.next().await);
    let (poke, error) = match (&a, &b) {
        (Seen::Poke(poke), Seen::Message(_, error)) | (Seen::Message(_, error), Seen::Poke(poke)) => (poke, error),
        other => panic!("{other:?}"),
    };
    assert!(poke.base.is_none());
    assert_eq!(rehomed(error), 0);
}

#[tokio::test]
async fn a_node_that_takes_versions_together_knows_not_what_was_in_between() {
    let mut cluster = Cluster::new(2).await;
    let c = settled(&mut cluster).await;
    // Both nodes have the query live; node 1 will see only the end of what comes.
    let mut other = cluster.nodes[1].world.connect("other", "c1", Store::default(), init(&[put("mine", 60_000)]));
    other.until("the query", |s| s.got.contains("mine")).await;
    let mut c = c;
    let change = cluster.source.put("issue", issue("short", "a", 1));
    cluster.commit(vec![change]).await;
    cluster.advance(0, 1).await;
    c.until("the row", |s| s.rows.len() == 5).await;
    let change = cluster.source.del("issue", &issue("short", "a", 1));
    cluster.commit(vec![change]).await;
    // In one step: the replica has both before the views hear of either.
    cluster.advance_at_once(1, 2).await;
    other.silent(A_WHILE).await;
    let (c, poke) = arrive(&cluster.nodes[1].world, &c.cut()).await;
    assert_eq!(poke.keys("del"), [r#"issue/"short""#]);
    assert_eq!(c.store.rows.len(), 4);
}

#[tokio::test]
async fn a_drain_promises_nothing_of_a_group_that_was_lost_before() {
    let mut cluster = Cluster::new(2).await;
    let mut c = settled(&mut cluster).await;
    cluster.hold(0);
    cluster.issue("late", "a", 1).await;
    c.silent(A_WHILE).await;
    let (done, drained) = tokio::sync::oneshot::channel();
    let within = Duration::ZERO;
    cluster.nodes[0].world.handle().commands.send(views::api::Command::Drain { done, within }).unwrap();
    c.silent(A_WHILE).await;
    let (mut other, _) = arrive(&cluster.nodes[1].world, &c.store).await;
    other.change(json!([del("mine")]));
    other.until("no desire", |s| s.desired["c1"].is_empty()).await;
    cluster.release(0);
    tokio::time::timeout(PATIENCE, drained).await.expect("drained").unwrap();
    let seen = c.drain(A_WHILE).await;
    assert!(matches!(seen[..], [Seen::Close(_)]), "no poke came to its end: {seen:?}");
}

#[tokio::test]
async fn a_node_that_does_not_know_of_its_loss_makes_nobody_start_over() {
    let mut cluster = Cluster::new(2).await;
    let c = settled(&mut cluster).await;
    cluster.hold(0);
    let (mut moved, _) = arrive(&cluster.nodes[1].world, &c.store).await;
    moved.change(json!([put("theirs", 60_000)]));
    moved.until("another query", |s| s.got.contains("theirs")).await;
    assert!(moved.store.cookie > c.store.cookie, "with a cookie that node 0 knows nothing of");
    let mut back = connect(&cluster, 0, moved.store.clone());
    back.silent(A_WHILE).await;
    cluster.release(0);
    let seen = back.drain(A_WHILE).await;
    match &seen[..] {
        [Seen::Close(_)] => {}
        [Seen::Message(tag, error), Seen::Close(_)] if tag == "error" => _ = rehomed(error),
        other => panic!("{other:?}"),
    }
}
