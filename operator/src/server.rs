//! `/metrics`, `/healthz` and `/readyz`, over plain HTTP.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Registry, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::report::Series;

/// Probes and scrapers need a few; the rest wait.
const CONNECTIONS_MAX: usize = 64;
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
const CONNECTION_LASTS: Duration = Duration::from_secs(300);

/// What the endpoints answer with.
#[derive(Clone)]
pub struct Pages {
    pub registry: Registry,
    /// Series made from the resources as they are when they are asked for.
    pub series: Series,
    /// The kind of resource is installed, and this operator reconciles or stands by.
    pub is_ready: Arc<AtomicBool>,
}

/// Opens the port.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, std::io::Error> {
    TcpListener::bind(address).await
}

/// Answers for ever.
pub async fn serve(listener: TcpListener, pages: Pages) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: some will come back.
                tracing::warn!(error = error.to_string(), "cannot take a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let pages = pages.clone();
        tokio::spawn(async move {
            answer(stream, pages).await;
            drop(permit);
        });
    }
}

async fn answer(stream: TcpStream, pages: Pages) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), &pages);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    // A client that goes away or talks nonsense is nothing to tell of.
    let _ = tokio::time::timeout(CONNECTION_LASTS, connection).await;
}

fn respond(method: &Method, path: &str, pages: &Pages) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
    }
    match path {
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" if pages.is_ready.load(Ordering::Relaxed) => plain(StatusCode::OK, "ok\n"),
        "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "waiting for the ZeroCache kind and for the watches\n"),
        "/metrics" => metrics(pages),
        _ => plain(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
    }
}

fn metrics(pages: &Pages) -> Response<Full<Bytes>> {
    let mut text = String::new();
    if let Err(error) = TextEncoder::new().encode_utf8(&pages.registry.gather(), &mut text) {
        tracing::error!(error = error.to_string(), "cannot write the metrics");
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "cannot write the metrics\n");
    }
    pages.series.write(&mut text);
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
