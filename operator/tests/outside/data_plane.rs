//! A small HTTP server in the place of a pod.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use zero_cache_operator::observe::BackupFault;
use zero_cache_operator::observe::outside::{Encryption, Inputs, Node, SecretText};

use super::{Scene, secret};

/// What the server does with a request.
#[derive(Clone)]
enum Answer {
    Bytes(Vec<u8>),
    /// A body without end, until the reader goes.
    Endless,
    Silence,
}

struct Pod {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<AtomicU32>,
    last: Arc<Mutex<String>>,
    /// Bytes of the longest endless body that was taken.
    taken: Arc<AtomicU32>,
}

impl Pod {
    async fn start(answer: Answer) -> Pod {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pod = Pod {
            address: listener.local_addr().unwrap(),
            answer: Arc::new(Mutex::new(answer)),
            requests: Arc::default(),
            last: Arc::default(),
            taken: Arc::default(),
        };
        let (answer, requests, last, taken) =
            (Arc::clone(&pod.answer), Arc::clone(&pod.requests), Arc::clone(&pod.last), Arc::clone(&pod.taken));
        tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                *last.lock().unwrap() = String::from_utf8_lossy(&request[..length]).into_owned();
                requests.fetch_add(1, Ordering::SeqCst);
                let answer = answer.lock().unwrap().clone();
                match answer {
                    Answer::Bytes(bytes) => drop(stream.write_all(&bytes).await),
                    Answer::Endless => {
                        let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
                        let _ = stream.write_all(head.as_bytes()).await;
                        let mut sent = 0;
                        while stream.write_all(&[b' '; 4096]).await.is_ok() {
                            sent += 4096;
                        }
                        taken.fetch_max(sent, Ordering::SeqCst);
                    }
                    Answer::Silence => {
                        tokio::spawn(async move {
                            tokio::time::sleep(Duration::from_secs(60)).await;
                            drop(stream);
                        });
                    }
                }
            }
        });
        pod
    }

    fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn inputs(&self) -> Inputs {
        let node = Node {
            pod: "shop-rm-0".to_owned(),
            address: self.address,
            tls: None,
            password: secret("open").unwrap(),
            generation: "v2".to_owned(),
        };
        Inputs { nodes: vec![node], ..Inputs::default() }
    }

    /// The server has answered so often since now.
    async fn answers(&self, count: u32) {
        let until = self.requests.load(Ordering::SeqCst) + count;
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.requests.load(Ordering::SeqCst) < until {
            assert!(Instant::now() < deadline, "it is not asked");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn ok(body: &str) -> Answer {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    Answer::Bytes(format!("{head}{body}").into_bytes())
}

fn report(slot_lost: bool) -> serde_json::Value {
    json!({ "node": {
        "role": "replication-manager", "version": "0.1.0", "streaming": true, "initialSync": false, "restoring": false,
        "replicaVersion": "1a", "lagSeconds": 0.5, "slotLost": slot_lost, "subscribers": 1,
        "backup": { "snapshotAt": 1_700_000_000, "lastAt": 1_700_000_000, "fault": { "kind": "failing", "message": "slow" } },
    }})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_asked_with_the_admin_password_and_news_are_told() {
    let pod = Pod::start(ok(&report(false).to_string())).await;
    let mut scene = Scene::new(pod.inputs());
    let blank = scene.look();
    assert_eq!((blank.nodes, blank.pending.nodes), (None, true));
    let nodes = scene.answered().await.nodes.unwrap();
    assert_eq!((nodes.streaming, nodes.snapshot_of.as_deref()), (Some(true), Some("v2")));
    assert_eq!(nodes.backup_fault, Some(BackupFault::Failing("slow".to_owned())));
    let request = pod.last.lock().unwrap().to_lowercase();
    assert!(request.starts_with("get /statz?group=node&format=json http/1.1\r\n"), "{request}");
    let expected = base64::prelude::BASE64_STANDARD.encode("operator:open").to_lowercase();
    assert!(request.contains(&format!("authorization: basic {expected}")), "{request}");
    pod.set(ok(&report(true).to_string()));
    scene.until("the loss of the slot", |facts| facts.nodes.as_ref().is_some_and(|nodes| nodes.slot_lost)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_answers_are_no_answers_and_a_single_one_is_overlooked() {
    let good = ok(&report(false).to_string());
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n";
    for (name, bad) in [
        ("garbage", ok("{\"node\": [")),
        ("other", ok("{\"status\": 1}")),
        ("not JSON", ok("<html>")),
        ("refused", Answer::Bytes(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n".to_vec())),
        (
            "moved",
            Answer::Bytes(b"HTTP/1.1 302 Found\r\nlocation: http://example.com/\r\ncontent-length: 0\r\n\r\n".to_vec()),
        ),
        ("no HTTP", Answer::Bytes(b"SSH-2.0-x\r\n".to_vec())),
        ("broken", Answer::Bytes(chunked.into())),
        ("cut", Answer::Bytes(Vec::new())),
        ("endless", Answer::Endless),
    ] {
        let pod = Pod::start(bad.clone()).await;
        let mut scene = Scene::new(pod.inputs());
        assert_eq!(scene.answered().await.nodes, None, "{name}");
        pod.set(good.clone());
        scene.until("a good answer", |facts| facts.nodes.is_some()).await;
        pod.set(bad);
        pod.answers(1).await;
        assert!(scene.look().nodes.is_some(), "{name}: one miss is believed");
        scene.until("the end of patience", |facts| facts.nodes.is_none()).await;
        assert!(pod.taken.load(Ordering::SeqCst) < 8 << 20, "{name}: too much is read");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_given_up_in_time() {
    let pod = Pod::start(Answer::Silence).await;
    let mut scene = Scene::new(pod.inputs());
    let begun = Instant::now();
    assert_eq!(scene.answered().await.nodes, None);
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_pod_said_is_not_said_of_the_next() {
    let (first, second) = (Pod::start(ok(&report(false).to_string())).await, Pod::start(Answer::Silence).await);
    let mut scene = Scene::new(first.inputs());
    assert!(scene.answered().await.nodes.is_some());
    scene.inputs = second.inputs();
    let blank = scene.look();
    assert_eq!((blank.nodes, blank.pending.nodes), (None, true));
    // A changed password alone keeps what is known.
    scene.inputs = first.inputs();
    scene.answered().await;
    scene.inputs.nodes[0].password = secret("other").unwrap();
    assert!(scene.look().nodes.is_some());
}

/// One that says its piece over TLS, with a certificate for `localhost`.
async fn sealed(authority: &testkit::tls::Authority) -> SocketAddr {
    let issued = authority.issue("DNS:localhost").unwrap();
    let chain = CertificateDer::pem_slice_iter(issued.certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let Answer::Bytes(answer) = ok(&report(false).to_string()) else { unreachable!("it is bytes") };
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let Ok(mut stream) = TlsAcceptor::from(Arc::clone(&config)).accept(stream).await else { continue };
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_password_is_told_only_to_whom_the_authority_vouches_for() {
    let (ours, other) = (testkit::tls::Authority::new().unwrap(), testkit::tls::Authority::new().unwrap());
    let address = sealed(&ours).await;
    let inputs = |name: &str, authorities: Option<&str>| {
        let tls = Encryption { name: name.to_owned(), authorities: authorities.map(SecretText::new) };
        let node = Node {
            pod: "shop-rm-0".to_owned(),
            address,
            tls: Some(tls),
            password: secret("open").unwrap(),
            generation: "v2".to_owned(),
        };
        Inputs { nodes: vec![node], ..Inputs::default() }
    };
    let trusted = Scene::new(inputs("localhost", Some(&ours.certificate))).answered().await;
    assert_eq!(trusted.nodes.unwrap().streaming, Some(true));
    for (name, authorities) in [
        ("localhost", Some(other.certificate.as_str())),
        ("elsewhere", Some(ours.certificate.as_str())),
        ("localhost", None),
        ("localhost", Some("no PEM")),
        ("", Some(ours.certificate.as_str())),
    ] {
        assert_eq!(Scene::new(inputs(name, authorities)).answered().await.nodes, None, "{name} {authorities:?}");
    }
}
