//! Between an operator and the API server: passes everything on with somebody's credentials, notes what was asked, cuts
//! connections off.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::right::{Right, needed};

#[derive(Clone, Debug)]
pub struct Asked {
    pub needs: Option<Right>,
    pub path: String,
    pub status: u16,
    pub head: Parts,
    pub body: Bytes,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Asked>>,
    connections: Mutex<JoinSet<()>>,
    is_closed: Mutex<bool>,
    hidden: Mutex<Option<&'static str>>,
}

pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// Asks the API server with the given client's credentials.
    pub async fn start(client: Client) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let mut accepting = JoinSet::new();
        let of_loop = Arc::clone(&shared);
        accepting.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if *of_loop.is_closed.lock().unwrap() {
                    continue;
                }
                let (client, shared) = (client.clone(), Arc::clone(&of_loop));
                let service = service_fn(move |request| pass_on(client.clone(), Arc::clone(&shared), request));
                of_loop.connections.lock().unwrap().spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Ok(Proxy { port, shared, _accepting: accepting })
    }

    /// A configuration that leads here.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let path = std::env::temp_dir().join(format!("control-plane-proxy-{}.yaml", self.port));
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: a, cluster: {{server: 'http://127.0.0.1:{}'}}}}]\n\
             users: [{{name: a, user: {{}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\ncurrent-context: a\n",
            self.port
        );
        std::fs::write(&path, text).context("write a kubeconfig")?;
        Ok(path)
    }

    /// Cuts all connections off; new ones are taken.
    pub fn cut(&self) {
        self.shared.connections.lock().unwrap().abort_all();
    }

    /// Takes no connections while it is closed.
    pub fn close(&self, is_closed: bool) {
        *self.shared.is_closed.lock().unwrap() = is_closed;
        if is_closed {
            self.cut();
        }
    }

    /// Answers as if an API group were not installed.
    pub fn hide(&self, group: Option<&'static str>) {
        *self.shared.hidden.lock().unwrap() = group;
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// What was needed by requests that were not refused.
    pub fn used(&self) -> BTreeSet<Right> {
        let asked = self.asked();
        asked.into_iter().filter(|asked| asked.status < 300).filter_map(|asked| asked.needs).collect()
    }

    /// Requests that would change something.
    pub fn writes(&self) -> Vec<Asked> {
        let reads = ["get", "list", "watch"];
        let is_write = |asked: &Asked| asked.needs.as_ref().is_some_and(|it| !reads.contains(&it.verb.as_str()));
        self.asked().into_iter().filter(is_write).collect()
    }
}

type Answer = UnsyncBoxBody<Bytes, kube::Error>;

async fn pass_on(
    client: Client,
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let needs = needed(&parts.method, parts.uri.path(), parts.uri.query().unwrap_or_default());
    let path = format!("{} {}", parts.method, parts.uri);
    parts.headers.remove(hyper::header::HOST);
    let hidden = *shared.hidden.lock().unwrap();
    if hidden.is_some_and(|group| parts.uri.path().starts_with(&format!("/apis/{group}"))) {
        return Ok(empty(StatusCode::NOT_FOUND));
    }
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let answer = client.send(Request::from_parts(parts.clone(), Body::from(body.to_vec()))).await;
    let status = answer.as_ref().map_or(502, |answer| answer.status().as_u16());
    let asked = Asked { needs: needs.clone(), path, status, head: parts, body };
    shared.asked.lock().unwrap().push(asked.clone());
    // An apply that made its object needed the right to make it as well.
    if let Some(needs) = needs.filter(|it| it.verb == "patch" && status == 201) {
        let needs = Some(Right { verb: "create".to_owned(), ..needs });
        shared.asked.lock().unwrap().push(Asked { needs, path: String::new(), ..asked });
    }
    Ok(match answer {
        Ok(answer) => answer.map(|body| body.map_err(|error| kube::Error::Service(error.into())).boxed_unsync()),
        Err(_) => empty(StatusCode::BAD_GATEWAY),
    })
}

fn empty(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}
