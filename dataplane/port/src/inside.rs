//! A port for those who operate a node and nobody else: the pages, without anything to upgrade to.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};

use crate::listen::{HeadLimits, accept, prepare, serve};
use crate::pages::{Health, Pages};
use crate::plain::text;
use crate::tasks::Tasks;

/// Few ask; more than this at once are closed without an answer.
const CONNECTIONS_MAX: usize = 256;
const LIMITS: HeadLimits = HeadLimits { timeout: Duration::from_secs(10), bytes_max: 32 * 1024 };
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Answers with `pages` for as long as it is polled. `health` is what probes are told.
pub async fn serve_pages(
    listener: TcpListener,
    pages: Pages,
    health: impl Fn() -> Health + Clone + Send + Sync + 'static,
) {
    let connections = Tasks::default();
    let pages = Arc::new(pages);
    loop {
        let stream = accept(&listener).await;
        if let Some(member) = connections.admit("admin connection", CONNECTIONS_MAX) {
            member.spawn(answer(stream, Arc::clone(&pages), health.clone()));
        }
    }
}

async fn answer(stream: TcpStream, pages: Arc<Pages>, health: impl Fn() -> Health) {
    // One that has no address is gone.
    let Ok(peer) = stream.peer_addr() else { return };
    prepare(&stream, UNACKNOWLEDGED);
    let answer = async |request| -> Response<Full<Bytes>> {
        match pages.answer(&request, health(), peer.ip()).await {
            Some((_, response)) => response,
            None => text(StatusCode::NOT_FOUND, "not found: this port serves probes, /metrics and /statz"),
        }
    };
    serve(stream, LIMITS, std::future::pending(), answer).await;
}
