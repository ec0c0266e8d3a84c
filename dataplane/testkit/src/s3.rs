//! An S3 server in this process: real HTTP, real signatures, objects as files in a temporary directory, and faults at will.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub const ACCESS_KEY: &str = "testkit";
pub const SECRET_KEY: &str = "testkit-secret";
pub const REGION: &str = "us-east-1";

/// What goes wrong until it is set otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Share of requests that are answered with an internal error, 0 to 1.
    pub errors: f64,
    /// Share of requests whose connection is cut instead of an answer, 0 to 1.
    pub cuts: f64,
    /// Every request waits so long.
    pub delay: Duration,
    /// Every request is denied, however well it is signed.
    pub is_denied: bool,
    /// Only requests that change something are concerned.
    pub writes_only: bool,
}

#[derive(Debug)]
struct State {
    faults: Mutex<Faults>,
    requests: AtomicU64,
    /// Changing requests that are still answered properly; all after them fail. Negative: no limit.
    writes_left: AtomicI64,
}

/// A running server. Stops when dropped; its objects go with it.
#[derive(Debug)]
pub struct S3 {
    address: SocketAddr,
    root: tempfile::TempDir,
    state: Arc<State>,
    serving: tokio::task::JoinHandle<()>,
}

impl S3 {
    /// Starts a server with one empty bucket on a loopback port, on the present runtime.
    pub async fn start(bucket: &str) -> Result<S3> {
        S3::start_in(bucket, &std::env::temp_dir()).await
    }

    /// The same, with its objects in a temporary directory below `parent`.
    pub async fn start_in(bucket: &str, parent: &Path) -> Result<S3> {
        S3::listen(bucket, parent, Ipv4Addr::LOCALHOST).await
    }

    /// The same on another of this machine's addresses.
    pub async fn start_at(bucket: &str, address: Ipv4Addr) -> Result<S3> {
        S3::listen(bucket, &std::env::temp_dir(), address).await
    }

    async fn listen(bucket: &str, parent: &Path, address: Ipv4Addr) -> Result<S3> {
        let root = tempfile::tempdir_in(parent).context("create a directory for objects")?;
        std::fs::create_dir(root.path().join(bucket)).context("create the bucket")?;
        let files = FileSystem::new(root.path()).map_err(|e| anyhow::anyhow!("{e:?}")).context("open the objects")?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let listener = TcpListener::bind((address, 0)).await.context("listen")?;
        let address = listener.local_addr()?;
        let state =
            Arc::new(State { faults: Mutex::default(), requests: AtomicU64::new(0), writes_left: AtomicI64::new(-1) });
        let serving = tokio::spawn(serve(listener, service, Arc::clone(&state)));
        Ok(S3 { address, root, state, serving })
    }

    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What a process needs in its environment to be let in.
    #[must_use]
    pub fn environment() -> [(&'static str, &'static str); 3] {
        [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY), ("AWS_REGION", REGION)]
    }

    pub fn set_faults(&self, faults: Faults) {
        *self.state.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Lets `count` more changing requests through; those after them fail, as if the sender had died. `None` lifts that.
    pub fn limit_writes(&self, count: Option<u32>) {
        self.state.writes_left.store(count.map_or(-1, i64::from), Ordering::SeqCst);
    }

    /// Requests that came in, whatever the answer.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// The file that holds an object.
    #[must_use]
    pub fn object(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.path().join(bucket).join(key)
    }

    /// The directory that holds all buckets.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, service: S3Service, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        // A connection that ended is nothing to report: tests cut them on purpose.
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(stream, service.clone(), Arc::clone(&state)));
    }
}

/// Ends with the connection, or cuts it.
async fn connection(stream: TcpStream, service: S3Service, state: Arc<State>) {
    // Without it small answers wait for an acknowledgement.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let (cut, is_cut) = tokio::sync::watch::channel(false);
    let answer = service_fn(move |request: Request<Incoming>| {
        let (service, state, cut) = (service.clone(), Arc::clone(&state), cut.clone());
        async move { Ok::<_, Infallible>(answer(&service, &state, &cut, request).await) }
    });
    let mut is_cut = is_cut;
    tokio::select! {
        _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer) => {}
        _ = is_cut.wait_for(|cut| *cut) => {}
    }
}

async fn answer(
    service: &S3Service,
    state: &State,
    cut: &tokio::sync::watch::Sender<bool>,
    request: Request<Incoming>,
) -> Response<Body> {
    state.requests.fetch_add(1, Ordering::Relaxed);
    let is_write = !matches!(*request.method(), Method::GET | Method::HEAD);
    let faults = *state.faults.lock().unwrap_or_else(PoisonError::into_inner);
    if is_write || !faults.writes_only {
        tokio::time::sleep(faults.delay).await;
        if faults.is_denied {
            return failure(403, "AccessDenied");
        }
        if rand::random::<f64>() < faults.cuts {
            cut.send_replace(true);
            return std::future::pending().await;
        }
        if rand::random::<f64>() < faults.errors {
            return failure(500, "InternalError");
        }
    }
    if is_write && state.writes_left.load(Ordering::SeqCst) >= 0 {
        // Below zero would mean no limit.
        let left = state.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| Some((n - 1).max(0)));
        if left == Ok(0) {
            return failure(503, "ServiceUnavailable");
        }
    }
    match service.call(request.map(Body::from)).await {
        Ok(response) => response,
        Err(_) => failure(500, "InternalError"),
    }
}

fn failure(status: u16, code: &str) -> Response<Body> {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>as the test asked</Message></Error>"
    );
    let mut response = Response::new(Body::from(xml));
    *response.status_mut() = status.try_into().expect("the statuses used are valid");
    response
}
