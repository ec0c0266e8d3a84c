//! The paths that every port answers: probes, metrics, statistics.

use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode};
use prometheus::Registry;

use crate::liveness::Liveness;
use crate::plain::{metrics, text};
use crate::statz::{StatusPage, names_groups};

/// What the node can say of itself when it is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not ready yet: an initial copy or a restore may take hours.
    Starting,
    Ready,
    /// Was ready and is not now.
    Interrupted,
    /// `was_ready` before the stop signal came.
    Draining {
        was_ready: bool,
    },
}

impl Health {
    /// For load balancers: whether to send work here. They turn away while the node drains, before it sends anybody away itself.
    fn ready(self) -> Response<Full<Bytes>> {
        match self {
            Health::Ready => text(StatusCode::OK, "OK"),
            Health::Starting => text(StatusCode::SERVICE_UNAVAILABLE, "starting"),
            Health::Interrupted => text(StatusCode::SERVICE_UNAVAILABLE, "not ready"),
            Health::Draining { .. } => text(StatusCode::SERVICE_UNAVAILABLE, "shutting down"),
        }
    }

    fn is_starting(self) -> bool {
        matches!(self, Health::Starting | Health::Draining { was_ready: false })
    }

    /// For deployments with one health check for everything: who starts after this node waits for it, and nobody kills it for
    /// draining or for falling behind.
    fn alive(self) -> Response<Full<Bytes>> {
        match self {
            Health::Starting | Health::Draining { was_ready: false } => self.ready(),
            Health::Ready | Health::Interrupted | Health::Draining { was_ready: true } => text(StatusCode::OK, "OK"),
        }
    }
}

/// Whether a port shows what is for those who operate the node: `/metrics` and `/statz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    Shown,
    /// While the node starts, `/statz` as a whole is unavailable: some wait for it before they send clients. Groups that are asked
    /// for by name are shown.
    ShownWhenReady,
    /// Another port shows it.
    Hidden,
}

/// What the answers are made from.
#[derive(Clone)]
pub struct Pages {
    registry: Registry,
    status: StatusPage,
    inside: Inside,
    liveness: Liveness,
}

impl Pages {
    #[must_use]
    pub fn new(registry: Registry, status: StatusPage, inside: Inside) -> Pages {
        Pages { registry, status, inside, liveness: Liveness::default() }
    }

    /// The same, with what `/livez` goes by.
    #[must_use]
    pub fn with_liveness(mut self, liveness: Liveness) -> Pages {
        self.liveness = liveness;
        self
    }

    fn lives(&self) -> Response<Full<Bytes>> {
        match self.liveness.stuck() {
            None => text(StatusCode::OK, "OK"),
            Some(part) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{part} makes no progress")),
        }
    }

    /// The answer and the path it is for, unless the request is for something else.
    ///
    /// | path | answers 200 |
    /// | --- | --- |
    /// | `/` | while the node takes work |
    /// | `/keepalive` | from when it first took work to the end of the process |
    /// | `/livez` | from the beginning to the end of the process, unless a part of it is stuck |
    pub async fn answer<B>(
        &self,
        request: &Request<B>,
        health: Health,
        peer: IpAddr,
    ) -> Option<(&'static str, Response<Full<Bytes>>)> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return None;
        }
        Some(match request.uri().path() {
            "/" => ("/", health.ready()),
            "/keepalive" => ("/keepalive", health.alive()),
            "/livez" => ("/livez", self.lives()),
            "/metrics" | "/statz" if self.inside == Inside::Hidden => return None,
            "/metrics" => ("/metrics", metrics(&self.registry)),
            "/statz" if self.inside == Inside::ShownWhenReady && health.is_starting() && !names_groups(request) => {
                ("/statz", health.ready())
            }
            "/statz" => ("/statz", self.status.answer(request, peer).await),
            _ => return None,
        })
    }
}
