//! Many resources at once, and resources that go.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use zero_cache_operator::observe::outside::{Inputs, Node, Outside, Timing};

use super::{key, quick, secret, upstream};

#[derive(Default)]
struct Counts {
    now: AtomicUsize,
    most: AtomicUsize,
    all: AtomicUsize,
}

/// Takes connections, counts them, and answers late or never.
async fn server(answers_after: Option<Duration>) -> (SocketAddr, Arc<Counts>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, counts) = (listener.local_addr().unwrap(), Arc::new(Counts::default()));
    let counted = Arc::clone(&counts);
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let counts = Arc::clone(&counted);
            tokio::spawn(async move {
                counts.all.fetch_add(1, Ordering::SeqCst);
                counts.most.fetch_max(counts.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let mut bytes = [0; 1024];
                let _ = stream.read(&mut bytes).await;
                match answers_after {
                    Some(pause) => {
                        tokio::time::sleep(pause).await;
                        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                    }
                    None => while matches!(stream.read(&mut bytes).await, Ok(1..)) {},
                }
                counts.now.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (address, counts)
}

fn with_node(address: SocketAddr) -> Inputs {
    Inputs {
        nodes: vec![Node {
            pod: "shop-rm-0".to_owned(),
            address,
            tls: None,
            password: secret("open").unwrap(),
            generation: "v1".to_owned(),
        }],
        ..Inputs::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_never_waits_and_only_so_many_are_asked_at_a_time() {
    let (silent, databases) = server(None).await;
    let (late, nodes) = server(Some(Duration::from_millis(20))).await;
    let (outside, mut changes) = Outside::start(Timing::default());
    let begun = Instant::now();
    for n in 0..500 {
        let url = format!("postgres://u@{silent}/d{n}?sslmode=disable");
        let inputs = Inputs { nodes: with_node(late).nodes, ..upstream(url) };
        let facts = outside.look(&key(&format!("shop-{n}")), inputs);
        assert!(facts.pending.databases && facts.pending.nodes);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "looking took {:?}", begun.elapsed());
    // Every status is there long before the first dead database is given up.
    let mut told = std::collections::BTreeSet::new();
    while told.len() < 500 {
        let key = tokio::time::timeout(Duration::from_secs(4), changes.next()).await.unwrap().unwrap();
        assert!(told.insert(key), "told twice without a look");
    }
    // 32 of each; the server notices a moment later that one is gone.
    let most = (nodes.most.load(Ordering::SeqCst), databases.most.load(Ordering::SeqCst));
    assert!(most.0 <= 64 && most.1 <= 32, "{most:?}");
    assert_eq!(nodes.all.load(Ordering::SeqCst), 500, "asked again too early");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_about_what_is_gone() {
    let (address, counts) = server(Some(Duration::ZERO)).await;
    let timing = Timing { forget_after: Duration::from_millis(600), ..quick() };
    let (outside, _changes) = Outside::start(timing);
    let quiet = async |why: &str| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = counts.all.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(counts.all.load(Ordering::SeqCst), before, "{why}");
    };
    let _ = outside.look(&key("forgotten"), with_node(address));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(counts.all.load(Ordering::SeqCst) > 1);
    outside.forget(&key("forgotten"));
    quiet("of a resource that is forgotten").await;

    let _ = outside.look(&key("left"), with_node(address));
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(outside.resources(), 0);
    quiet("of a resource that nobody looks at").await;

    let _ = outside.look(&key("without"), with_node(address));
    let _ = outside.look(&key("without"), Inputs::default());
    quiet("without an address").await;

    let _ = outside.look(&key("ended"), with_node(address));
    drop(outside);
    tokio::time::sleep(Duration::from_millis(5100)).await;
    quiet("after the operator stopped").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_server_is_asked_ever_more_seldom() {
    let (address, counts) = server(Some(Duration::ZERO)).await;
    let mut timing = quick();
    timing.nodes.quick = Duration::from_millis(20);
    timing.nodes.slow = Duration::from_secs(60);
    let (outside, _changes) = Outside::start(timing);
    let _ = outside.look(&key("shop"), Inputs { is_busy: true, ..with_node(address) });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // 20, 20, 20, 40, 80, 160, 320, 640 ms.
    let asked = counts.all.load(Ordering::SeqCst);
    assert!((5..=10).contains(&asked), "{asked} times");
}
