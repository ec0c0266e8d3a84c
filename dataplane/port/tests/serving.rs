use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use port::{HeadLimits, Tasks, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Answers `slow` after a moment, and whatever else at once, until told to drain.
struct Server {
    address: SocketAddr,
    drain: watch::Sender<bool>,
    connections: Tasks,
}

async fn start() -> Server {
    let (listener, address) = port::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let (drain, draining) = watch::channel(false);
    let connections = Tasks::default();
    let tasks = connections.clone();
    tokio::spawn(async move {
        loop {
            let stream = port::accept(&listener).await;
            let mut draining = draining.clone();
            tasks.spawn("connection", async move {
                let limits = HeadLimits { timeout: Duration::from_millis(300), bytes_max: 16 * 1024 };
                let until = async { drop(draining.wait_for(|on| *on).await) };
                let answer = async |request: hyper::Request<_>| {
                    if request.uri().path() == "/slow" {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    text(StatusCode::OK, "said")
                };
                port::serve(stream, limits, until, answer).await;
            });
        }
    });
    Server { address, drain, connections }
}

/// What comes back until the server closes.
async fn talk(address: SocketAddr, said: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(said).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn who_does_not_finish_a_head_is_cut_off() {
    let server = start().await;
    let started = Instant::now();
    for said in ["", "GET / HTTP/1.1\r\nhost: x\r\nx-more"] {
        let answer = talk(server.address, said.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    // An idle connection is cut off after its answer as well.
    let answer = talk(server.address, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    server.connections.finished().await;
}

#[tokio::test]
async fn a_large_head_is_refused() {
    let server = start().await;
    let head =
        |bytes: usize| format!("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: {}\r\n\r\n", "x".repeat(bytes));
    assert!(talk(server.address, head(12 * 1024).as_bytes()).await.starts_with("HTTP/1.1 200"));
    assert!(talk(server.address, head(24 * 1024).as_bytes()).await.starts_with("HTTP/1.1 431"));
    let many: String = (0..200).map(|n| format!("x{n}: y\r\n")).collect();
    let answer = talk(server.address, format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert!(talk(server.address, b"\x16\x03\x01\x02\x00 TLS").await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn the_answer_under_way_is_given_before_the_end() {
    let server = Arc::new(start().await);
    let address = server.address;
    let slow = tokio::spawn(async move { talk(address, b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.drain.send_replace(true);
    assert!(slow.await.unwrap().ends_with("said"));
    server.connections.finished().await;
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let server = start().await;
    let error = port::bind(server.address).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("bind {}: ", server.address)), "{error}");
}
