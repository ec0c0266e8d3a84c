//! Plain HTTP of the port: probes, metrics, statistics.

use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, Response, StatusCode};
use port::text;

use crate::alive::LIVENESS_PATH;
use crate::server::Shared;
use crate::upgrade::STREAM_PATH;
use crate::wire::{NODE_HEADER, STREAMS_HEADER};

pub(crate) async fn answer<B>(shared: &Shared, request: &Request<B>, peer: IpAddr) -> Response<Full<Bytes>> {
    let mut response = page(shared, request, peer).await;
    if shared.gate.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn page<B>(shared: &Shared, request: &Request<B>, peer: IpAddr) -> Response<Full<Bytes>> {
    if let Some((path, mut response)) = shared.pages.answer(request, shared.gate.health(), peer).await {
        if path == LIVENESS_PATH
            && let Ok(node) = HeaderValue::from_str(&shared.options.node)
        {
            response.headers_mut().insert(NODE_HEADER, node);
            let streams = if shared.gate.is_streaming() { "1" } else { "0" };
            response.headers_mut().insert(STREAMS_HEADER, HeaderValue::from_static(streams));
        }
        return response;
    }
    if request.uri().path().starts_with(STREAM_PATH) {
        text(StatusCode::UPGRADE_REQUIRED, "the change stream is a WebSocket: send an upgrade request")
    } else {
        text(StatusCode::NOT_FOUND, "not found: this port serves the change stream to other nodes")
    }
}
