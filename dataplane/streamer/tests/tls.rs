//! A port that shows a certificate, and whom it is shown to.

use std::time::Duration;

use streamer::{Authority, Certificate, Error, Options, ServerOptions, Subscriber, Unusable, fetch_snapshot};
use testkit::http::get_over_tls;
use testkit::tls::{self, Issued, Mount};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::harness::{LIMIT, Owner, Port, database, read_to, server_options, some, until, v, versions};

const NAMES: &str = "DNS:localhost";

/// A Secret of type `kubernetes.io/tls`.
fn files<'a>(issued: &'a Issued, authority: &'a tls::Authority) -> [(&'static str, &'a str); 3] {
    [("tls.crt", &issued.certificate), ("tls.key", &issued.key), ("ca.crt", &authority.certificate)]
}

fn mount(authority: &tls::Authority) -> Mount {
    Mount::new(&files(&authority.issue(NAMES).unwrap(), authority)).unwrap()
}

pub fn encrypted(mount: &Mount) -> ServerOptions {
    let certificate = Certificate::open(mount.file("tls.crt"), mount.file("tls.key")).unwrap();
    let certificate_interval = Duration::from_millis(20);
    ServerOptions { certificate: Some(certificate), certificate_interval, ..server_options() }
}

/// By the name that the certificate is for, trusting what is in `ca.crt`.
fn trusting(options: Options, port: &Port, mount: &Mount) -> Options {
    let tls = Some(Authority::open(mount.file("ca.crt")).unwrap());
    Options { uri: format!("wss://localhost:{}", port.address.port()), tls, ..options }
}

async fn failure(options: &Options) -> String {
    match Subscriber::connect(options, v(10), v(10)).await.err().unwrap() {
        Error::Transient { message, .. } | Error::Unverified { message } => message,
        other => panic!("a person may be at work on it: {other}"),
    }
}

fn refusals(port: &Port) -> u64 {
    port.metrics.refusals.with_label_values(&["tls"]).get()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_on_the_port_is_encrypted() {
    let database = database("tls").await;
    let authority = tls::Authority::new().unwrap();
    let mount = mount(&authority);
    let mut owner = Owner::begin_with(&database, encrypted(&mount), |_| {}).await;
    owner.append(&some(11..21)).await;
    let options = trusting(owner.subscriber("follower"), &owner.server, &mount);
    let port = owner.server.address.port();
    for uri in [format!("wss://localhost:{port}"), format!("https://localhost:{port}/")] {
        let (_, mut subscriber) = Subscriber::connect(&Options { uri, ..options.clone() }, v(10), v(10)).await.unwrap();
        assert_eq!(versions(&read_to(&mut subscriber, 20).await), (11..21).collect::<Vec<_>>());
    }
    // Far more than fits a buffer, live and again from the log.
    let (_, mut live) = Subscriber::connect(&options, v(10), v(20)).await.unwrap();
    for n in 21..31 {
        owner.append(&[crate::harness::transaction(n, 2000, &"x".repeat(200))]).await;
    }
    assert_eq!(read_to(&mut live, 30).await.len(), 10);
    let (_, mut late) = Subscriber::connect(&options, v(10), v(20)).await.unwrap();
    assert_eq!(read_to(&mut late, 30).await.len(), 10);
    assert!(matches!(fetch_snapshot(&options).await, Err(Error::Configuration { .. })), "there is none to send");
    // Whoever has not said anything yet does not hold up the end.
    let _silent = TcpStream::connect(owner.server.address).await.unwrap();
    for (path, status) in [("/", 200), ("/livez", 200), ("/keepalive", 200), ("/metrics", 200), ("/statz", 401)] {
        assert_eq!(get_over_tls(port, path, "", &mount.file("ca.crt")).unwrap().0, status, "{path}");
    }
    assert_eq!(refusals(&owner.server), 0);
    assert!(owner.server.stop().await.is_graceful);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_trusted_is_not_followed() {
    let database = database("tls_trust").await;
    let authority = tls::Authority::new().unwrap();
    let mount = mount(&authority);
    let owner = Owner::begin_with(&database, encrypted(&mount), |_| {}).await;
    let options = trusting(owner.subscriber("careful"), &owner.server, &mount);
    let stranger = tls::Authority::new().unwrap();
    let other = Mount::new(&[("ca.crt", &stranger.certificate)]).unwrap();
    // The system knows neither.
    for tls in [Some(Authority::open(other.file("ca.crt")).unwrap()), None] {
        let message = failure(&Options { tls, ..options.clone() }).await;
        assert!(message.contains("certificate") && message.contains("ZERO_CHANGE_STREAMER_TLS_CA_FILE"), "{message}");
    }
    until("the owner to be told", || refusals(&owner.server) >= 2).await;
    let by_address = Options { uri: format!("wss://{}", owner.server.address), ..options };
    let message = failure(&by_address).await;
    assert!(message.contains("127.0.0.1") && message.contains("localhost"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_end_without_tls_is_told() {
    let database = database("tls_one_sided").await;
    let authority = tls::Authority::new().unwrap();
    let mount = mount(&authority);
    let encrypted = Owner::begin_with(&database, encrypted(&mount), |_| {}).await;
    // A plain probe, which gets no HTTP, and a plain subscriber.
    let (status, answer) = crate::http::get(&encrypted.server, "/", "").await;
    assert!(status == 0 && !answer.contains("HTTP"), "{answer}");
    until("it to be counted", || refusals(&encrypted.server) == 1).await;
    let message = failure(&encrypted.subscriber("plain")).await;
    assert!(message.contains("wss://"), "{message}");
    until("both to be counted", || refusals(&encrypted.server) == 2).await;
    // The port goes on.
    let options = trusting(encrypted.subscriber("right"), &encrypted.server, &mount);
    Subscriber::connect(&options, v(10), v(10)).await.unwrap();

    let plain = Port::start(server_options()).await;
    let message = failure(&trusting(options, &plain, &mount)).await;
    assert!(message.contains("does not speak TLS") && message.contains("ws://"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_replaced_count_from_the_next_connection_on() {
    let database = database("tls_rotation").await;
    let (before, after) = (tls::Authority::new().unwrap(), tls::Authority::new().unwrap());
    let mut mount = mount(&before);
    let mut owner = Owner::begin_with(&database, encrypted(&mount), |_| {}).await;
    let options = trusting(owner.subscriber("follower"), &owner.server, &mount);
    let (_, mut connected) = Subscriber::connect(&options, v(10), v(10)).await.unwrap();

    // Neither half a Secret nor nonsense takes the port's certificate away.
    let (old, new) = (before.issue(NAMES).unwrap(), after.issue(NAMES).unwrap());
    for (certificate, key) in [(&new.certificate, &old.key), (&"nonsense".to_owned(), &new.key)] {
        mount.put(&[("tls.crt", certificate), ("tls.key", key), ("ca.crt", &before.certificate)]).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        Subscriber::connect(&options, v(10), v(10)).await.unwrap();
    }
    mount.put(&[("ca.crt", &before.certificate)]).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    Subscriber::connect(&options, v(10), v(10)).await.unwrap();

    // The same options: the file is read at each connect.
    mount.put(&files(&new, &after)).unwrap();
    let deadline = Instant::now() + LIMIT;
    while let Err(error) = Subscriber::connect(&options, v(10), v(10)).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Whoever follows already is not disturbed.
    owner.append(&some(11..21)).await;
    assert_eq!(read_to(&mut connected, 20).await.len(), 10);
    mount.put(&[]).unwrap();
    let message = failure(&options).await;
    assert!(message.contains("ca.crt cannot be read"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_before_tls_is_bounded_in_time_and_number() {
    let authority = tls::Authority::new().unwrap();
    let mount = mount(&authority);
    let limit = Duration::from_secs(1);
    let options = ServerOptions { connections_max: 8, handshake_timeout: limit, ..encrypted(&mount) };
    let port = Port::start(options).await;
    let began = Instant::now();
    let mut silent = Vec::new();
    for n in 0..8 {
        let mut stream = TcpStream::connect(port.address).await.unwrap();
        // Some begin and do not go on; the time for all of it is one.
        if n % 2 == 0 {
            stream.write_all(b"\x16\x03\x01").await.unwrap();
        }
        silent.push(stream);
    }
    let mut further = TcpStream::connect(port.address).await.unwrap();
    let turned_away = timeout(limit / 2, further.read(&mut [0; 8])).await.expect("closed at once");
    assert!(matches!(turned_away, Ok(0) | Err(_)));
    assert_eq!(port.metrics.refusals.with_label_values(&["connections"]).get(), 1);
    for mut stream in silent {
        let _ = timeout(LIMIT, stream.read(&mut [0; 8])).await.expect("closed in time");
    }
    assert!(began.elapsed() >= limit && began.elapsed() < 5 * limit, "{:?}", began.elapsed());
    assert_eq!(refusals(&port), 0, "silence is no attempt");
    assert_eq!(get_over_tls(port.address.port(), "/livez", "", &mount.file("ca.crt")).unwrap().0, 200);
}

#[test]
fn what_is_wrong_with_a_file_is_told() {
    let authority = tls::Authority::new().unwrap();
    let (issued, other) = (authority.issue(NAMES).unwrap(), authority.issue(NAMES).unwrap());
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let garbled = "-----BEGIN PRIVATE KEY-----\nhunter2!\n-----END PRIVATE KEY-----\n";
    let (certificate, key) = (issued.certificate.as_str(), issued.key.as_str());
    for (certificate, key, file, fault) in [
        ("nonsense", key, "tls.crt", "holds no certificate in PEM"),
        (key, key, "tls.crt", "holds no certificate in PEM"),
        (broken, key, "tls.crt", "no usable certificate"),
        (certificate, certificate, "tls.key", "holds no private key in PEM"),
        (certificate, garbled, "tls.key", "is not PEM"),
        (certificate, &other.key, "tls.key", "is not the key of"),
    ] {
        let mount = Mount::new(&[("tls.crt", certificate), ("tls.key", key)]).unwrap();
        let unusable = Certificate::open(mount.file("tls.crt"), mount.file("tls.key")).unwrap_err();
        assert!(unusable.file == mount.file(file) && unusable.fault.contains(fault), "{unusable}");
        assert!(!unusable.to_string().contains("hunter2"), "{unusable}");
    }
    let mount = Mount::new(&[("ca.crt", broken), ("nonsense", "nonsense")]).unwrap();
    let fault = |name: &str| Authority::open(mount.file(name)).map_err(|Unusable { fault, .. }| fault).unwrap_err();
    assert!(fault("ca.crt").contains("no usable certificate"), "{}", fault("ca.crt"));
    assert_eq!(fault("nonsense"), "holds no certificate in PEM");
    assert!(fault("missing").contains("cannot be read"));
}
