use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::proxy::{Choice, Mood, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

/// Answers `GET /` by whether it is ready, echoes everything else behind its letter.
struct Backend {
    port: u16,
    is_ready: Arc<AtomicBool>,
}

async fn backend(letter: u8) -> Result<Backend> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let is_ready = Arc::new(AtomicBool::new(true));
    let ready = Arc::clone(&is_ready);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let ready = Arc::clone(&ready);
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if buffer.starts_with(b"GET / ") {
                        let status = if ready.load(Ordering::Relaxed) { 200 } else { 503 };
                        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
                        return stream.write_all(answer.as_bytes()).await;
                    }
                    stream.write_all(&[letter]).await?;
                    stream.write_all(&buffer[..count]).await?;
                }
                Ok(())
            });
        }
    });
    Ok(Backend { port, is_ready })
}

/// Sends a word on a fresh connection; the letter of the backend that echoed it.
async fn ask(proxy: &Proxy) -> Result<(u8, TcpStream)> {
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
    let letter = say(&mut stream).await?;
    Ok((letter, stream))
}

async fn say(stream: &mut TcpStream) -> Result<u8> {
    stream.write_all(b"word").await?;
    let mut answer = [0; 5];
    timeout(SOON, stream.read_exact(&mut answer)).await.context("no answer")??;
    ensure!(&answer[1..] == b"word");
    Ok(answer[0])
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(timeout(SOON, stream.read(&mut [0; 8])).await, Ok(Ok(0) | Err(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_go_round_over_healthy_backends() -> Result<()> {
    let (a, b) = (backend(b'a').await?, backend(b'b').await?);
    let proxy = Proxy::balance(&[a.port, b.port], Choice::RoundRobin).await?;
    proxy.wait_healthy(a.port, true, SOON).await?;
    proxy.wait_healthy(b.port, true, SOON).await?;
    let mut letters = Vec::new();
    for _ in 0..4 {
        letters.push(ask(&proxy).await?.0);
    }
    ensure!(letters == *b"abab" || letters == *b"baba", "{letters:?}");
    ensure!((proxy.opened(a.port), proxy.opened(b.port)) == (2, 2));

    // One that is no longer ready gets nobody new and keeps those it has.
    let (mut first, mut second) = (ask(&proxy).await?, ask(&proxy).await?);
    b.is_ready.store(false, Ordering::Relaxed);
    proxy.wait_healthy(b.port, false, SOON).await?;
    for _ in 0..3 {
        ensure!(ask(&proxy).await?.0 == b'a');
    }
    ensure!(say(&mut first.1).await? == first.0 && say(&mut second.1).await? == second.0);

    // Nor does one that is taken out; with nobody left, the door is closed.
    proxy.remove(a.port);
    ensure!(ask(&proxy).await.is_err());
    ensure!(proxy.refused() > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_cut_and_held() -> Result<()> {
    let a = backend(b'a').await?;
    let proxy = Proxy::relay(a.port).await?;
    let (_, mut stream) = ask(&proxy).await?;
    proxy.hold(a.port);
    stream.write_all(b"word").await?;
    ensure!(timeout(Duration::from_millis(100), stream.read(&mut [0; 8])).await.is_err(), "a held byte passed");
    proxy.release(a.port);
    let mut answer = [0; 5];
    timeout(SOON, stream.read_exact(&mut answer)).await??;
    ensure!(&answer == b"aword", "nothing is lost while held");

    for _ in 0..2 {
        let (_, mut other) = ask(&proxy).await?;
        proxy.cut(a.port);
        ensure!(is_closed(&mut other).await);
    }
    ensure!(is_closed(&mut stream).await);
    let (_, mut stream) = ask(&proxy).await?;
    drop(proxy);
    ensure!(is_closed(&mut stream).await);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_can_be_closed_wrong_slow_or_silent() -> Result<()> {
    let a = backend(b'a').await?;
    let proxy = Proxy::relay(a.port).await?;
    let (_, mut stream) = ask(&proxy).await?;
    proxy.set_mood(Mood::Refuses);
    ensure!(is_closed(&mut stream).await);
    ensure!(ask(&proxy).await.is_err());

    proxy.set_mood(Mood::Answers(503));
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
    stream.write_all(b"GET /bucket HTTP/1.1\r\n\r\n").await?;
    let mut text = String::new();
    timeout(SOON, stream.read_to_string(&mut text)).await??;
    ensure!(text.starts_with("HTTP/1.1 503 "), "{text}");

    proxy.set_mood(Mood::Slow(1, Duration::from_millis(10)));
    let begin = std::time::Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
    stream.write_all(b"word").await?;
    while timeout(SOON, stream.read_u8()).await?? != b'd' {}
    ensure!(begin.elapsed() >= Duration::from_millis(30), "four bytes at 10 ms each took {:?}", begin.elapsed());

    proxy.set_mood(Mood::Holds);
    let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
    stream.write_all(b"word").await?;
    ensure!(timeout(Duration::from_millis(100), stream.read(&mut [0; 8])).await.is_err());
    proxy.set_mood(Mood::Good);
    let mut answer = [0; 5];
    timeout(SOON, stream.read_exact(&mut answer)).await??;
    ensure!(&answer == b"aword");
    ensure!(proxy.open_now(a.port) >= 1);
    Ok(())
}
