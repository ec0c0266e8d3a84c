//! What applies CRUD mutations, as the composition root says. The gateway itself knows no database.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use protocol::crud::CrudOp;
use views::api::ConnectionContext;

/// One mutation of a client whose socket has been let in.
#[derive(Debug)]
pub struct CrudRequest {
    pub group: Arc<str>,
    pub client_id: String,
    pub id: i64,
    pub ops: Vec<CrudOp>,
    /// On whose behalf; its token, if there is one, was verified here.
    pub context: Arc<ConnectionContext>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrudOutcome {
    /// It is over, be it that it was applied, now or before, or that the rules forbid it.
    Done,
    /// It is over and was not applied, for this reason.
    Failed(String),
    /// Mutations before it are missing.
    OutOfOrder { expected: i64 },
    /// Nothing is known of it: it should come again later.
    Unavailable,
}

pub type CrudFuture = Pin<Box<dyn Future<Output = CrudOutcome> + Send>>;

pub trait CrudWriter: Send + Sync + 'static {
    /// Called for the mutations of one group one after the other.
    fn apply(&self, request: CrudRequest) -> CrudFuture;
}

/// Most mutations of one client group in a window.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    pub mutations_max: usize,
    pub window: Duration,
}

#[derive(Clone)]
pub struct CrudOptions {
    pub writer: Arc<dyn CrudWriter>,
    pub limit: Option<RateLimit>,
}

impl std::fmt::Debug for CrudOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CrudOptions").field("limit", &self.limit).finish_non_exhaustive()
    }
}
