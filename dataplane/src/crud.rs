//! Joins the port for clients with what writes their CRUD mutations upstream.

use std::sync::Arc;

use anyhow::{Context, Result};
use gateway::crud::{CrudFuture, CrudOptions, CrudOutcome, CrudRequest, CrudWriter, RateLimit};
use prometheus::Registry;
use upstream::{Address, App};

use crate::config::Config;

struct Upstream(Arc<crud::Writer>);

impl CrudWriter for Upstream {
    fn apply(&self, request: CrudRequest) -> CrudFuture {
        let writer = Arc::clone(&self.0);
        Box::pin(async move {
            let claims = request.context.claims.as_ref().and_then(serde_json::Value::as_object);
            let mutation = crud::Request {
                group: &request.group,
                client: &request.client_id,
                id: request.id,
                ops: &request.ops,
                claims,
            };
            match writer.apply(&mutation).await {
                crud::Outcome::Applied | crud::Outcome::AlreadyDone | crud::Outcome::Denied => CrudOutcome::Done,
                crud::Outcome::Failed(message) => CrudOutcome::Failed(message),
                crud::Outcome::OutOfOrder { expected } => CrudOutcome::OutOfOrder { expected },
                // Logged where it was met.
                crud::Outcome::Unavailable(_) => CrudOutcome::Unavailable,
            }
        })
    }
}

/// `None` if CRUD mutations are switched off. Connects when the first mutation comes.
pub fn options(config: &Config, registry: &Registry) -> Result<Option<CrudOptions>> {
    let metrics = crud::Metrics::register(registry)?;
    let Some(settings) = &config.crud else { return Ok(None) };
    let address: Address = config.upstream.db.expose().parse().context("ZERO_UPSTREAM_DB")?;
    let options = crud::Options {
        address,
        app: App::new(&config.app.id, config.app.shard_num)?,
        connections_max: settings.connections_max,
        has_custom: !config.mutate.urls.is_empty(),
    };
    let limit = settings.mutations_max.map(|mutations_max| RateLimit { mutations_max, window: settings.window });
    Ok(Some(CrudOptions { writer: Arc::new(Upstream(Arc::new(crud::Writer::new(options, metrics)))), limit }))
}
