//! Asking whether a node is alive, over the port of its change stream.
//!
//! Knows no token and no frame: it is a probe's question, which anybody may ask. Nothing of the answer but its head is read.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::authority::Authority;
use crate::error::{Error, Result};
use crate::tls::Target;
use crate::wire::{NODE_HEADER, STREAMS_HEADER};

pub(crate) const LIVENESS_PATH: &str = "/livez";

/// What a node that lives says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alive {
    /// Whether changes arrive there from Postgres; unknown of a node of an earlier version.
    pub streams: Option<bool>,
}

/// Fails unless the node answers at `address` within `limit`. Another one that answers there is not it: addresses are given anew.
///
/// [`Error::Unverified`] says nothing of that: a process answers, and it is this node that cannot tell which.
pub async fn is_alive(address: &str, node: &str, authority: Option<&Authority>, limit: Duration) -> Result<Alive> {
    let target = Target::parse(address)?;
    let place = target.authority();
    let silent = || Error::transient(format!("no answer from {place} within {limit:?}"));
    let answer = timeout(limit, ask(&target, authority)).await.map_err(|_| silent())??;
    let told = answer.headers().get(NODE_HEADER);
    if let Some(other) = told.filter(|told| told.as_bytes() != node.as_bytes()) {
        return Err(Error::transient(format!("at {place} is another node: {other:?}")));
    }
    if answer.status().is_success() {
        let streams = answer.headers().get(STREAMS_HEADER).map(|streams| streams.as_bytes() == b"1");
        Ok(Alive { streams })
    } else {
        Err(Error::transient(format!("{place} answered with status {}", answer.status().as_u16())))
    }
}

async fn ask(target: &Target, authority: Option<&Authority>) -> Result<Response<Incoming>> {
    let place = target.authority();
    let failed = |error: hyper::Error| Error::transient(format!("cannot ask {place}: {error}"));
    let stream = target.connect(authority).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let request = Request::get(format!("{}{LIVENESS_PATH}", target.prefix))
        .header(HOST, &place)
        .body(Empty::<Bytes>::new())
        .map_err(|error| Error::configuration(format!("the address {place} is not usable: {error}")))?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // Its end does not take back what has come.
        _ = &mut connection => answer.await,
    };
    answer.map_err(failed)
}
