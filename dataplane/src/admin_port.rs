//! `ZERO_ADMIN_PORT`: `/metrics` and `/statz` where clients do not come.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use port::{Inside, Liveness, Pages, StatusPage};
use prometheus::Registry;
use tokio::task::JoinHandle;
use tracing::info;

use crate::config::Config;

/// Serves until it is closed.
pub struct AdminPort {
    serving: JoinHandle<()>,
}

impl AdminPort {
    /// `None` unless there is to be one. Probes are answered as on the port for clients, whose gate this is.
    pub async fn open(
        config: &Config,
        registry: &Registry,
        status: &StatusPage,
        gate: &gateway::Gate,
        liveness: &Liveness,
    ) -> Result<Option<AdminPort>> {
        let Some(number) = config.network.admin_port else { return Ok(None) };
        let (listener, address) =
            port::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, number))).await.context("ZERO_ADMIN_PORT")?;
        info!(%address, "listening for those who operate this node");
        let pages = Pages::new(registry.clone(), status.clone(), Inside::Shown).with_liveness(liveness.clone());
        let gate = gate.clone();
        let serving = tokio::spawn(port::serve_pages(listener, pages, move || gate.health()));
        Ok(Some(AdminPort { serving }))
    }

    /// The port is free when this returns.
    pub async fn close(self) {
        self.serving.abort();
        // It ends in no other way.
        let _ = self.serving.await;
    }
}
