//! One proxied connection.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::{Link, Mood};

/// Whether `GET /` of a backend is answered with 200.
pub(super) async fn is_healthy(port: u16) -> bool {
    let answer = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        std::io::Result::Ok(status)
    };
    answer.await.is_ok_and(|status| &status == b"HTTP/1.1 200")
}

/// Answers one request without looking at it.
pub(super) async fn answer(mut client: TcpStream, status: u16) {
    let mut request = [0; 16 * 1024];
    if client.read(&mut request).await.is_ok_and(|count| count > 0) {
        let answer = format!("HTTP/1.1 {status} Status\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        // Whoever hangs up first is no concern of the test.
        let _ = client.write_all(answer.as_bytes()).await;
        let _ = client.shutdown().await;
        while client.read(&mut request).await.is_ok_and(|count| count > 0) {}
    }
}

/// Passes bytes both ways until both sides are done or the connection is cut.
pub(super) async fn forward(
    client: TcpStream,
    server: TcpStream,
    link: watch::Receiver<Link>,
    mood: watch::Receiver<Mood>,
) {
    // Small frames must not wait for each other.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let there = pump(from_client, to_server, link.clone(), mood.clone());
    let back = pump(from_server, to_client, link.clone(), mood.clone());
    tokio::select! {
        _ = async { tokio::join!(there, back) } => {}
        () = cut(link, mood) => {}
    }
}

/// Returns when the connection must end.
async fn cut(mut link: watch::Receiver<Link>, mut mood: watch::Receiver<Mood>) {
    let before = *link.borrow_and_update();
    let cut = link.wait_for(|now| matches!(now, Link::Cut(_)) && *now != before);
    let broken = mood.wait_for(|mood| matches!(mood, Mood::Refuses | Mood::Answers(_)));
    // An error means that the proxy is gone.
    tokio::select! {
        _ = cut => {}
        _ = broken => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut link: watch::Receiver<Link>,
    mut mood: watch::Receiver<Mood>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let slowness = match *mood.borrow() {
            Mood::Slow(bytes, pause) => Some((bytes.clamp(1, buffer.len()), pause)),
            _ => None,
        };
        let most = slowness.map_or(buffer.len(), |(bytes, _)| bytes);
        let Ok(count) = from.read(&mut buffer[..most]).await else { return };
        if count == 0 {
            let _ = to.shutdown().await;
            return;
        }
        if link.wait_for(|link| *link != Link::Held).await.is_err() {
            return;
        }
        if mood.wait_for(|mood| *mood != Mood::Holds).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        if let Some((_, pause)) = slowness {
            tokio::time::sleep(pause).await;
        }
    }
}
