//! A small real API server, answering by script.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::PATIENCE;

#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: HeaderMap,
    pub text: String,
}

impl Seen {
    pub fn body(&self) -> Value {
        serde_json::from_str(&self.text).expect("JSON body")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
    pub location: Option<String>,
}

pub fn ok(body: impl ToString) -> Reply {
    Reply { status: 200, body: body.to_string(), location: None }
}

pub fn status(status: u16, body: &str) -> Reply {
    Reply { status, body: body.to_owned(), location: None }
}

type Script = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

pub struct Api {
    pub address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
    script: Arc<Mutex<Script>>,
    /// Answers wait for a permit while the gate is closed.
    gate: Arc<Semaphore>,
    stuck: Arc<Stuck>,
}

/// Requests that wait whatever the gate says.
struct Stuck {
    text: Mutex<Option<&'static str>>,
    gate: Semaphore,
}

const OPEN: usize = 1_000_000;

impl Api {
    pub async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Arc::new(script)));
        let gate = Arc::new(Semaphore::new(OPEN));
        let stuck = Arc::new(Stuck { text: Mutex::default(), gate: Semaphore::new(0) });
        let stuck_in_task = Arc::clone(&stuck);
        let (sender, seen) = mpsc::unbounded_channel();
        let (script_in_task, gate_in_task) = (Arc::clone(&script), Arc::clone(&gate));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, gate, sender) = (Arc::clone(&script_in_task), Arc::clone(&gate_in_task), sender.clone());
                let stuck = Arc::clone(&stuck_in_task);
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (script, gate, sender) = (Arc::clone(&script), Arc::clone(&gate), sender.clone());
                    let stuck = Arc::clone(&stuck);
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let seen = Seen {
                            method: head.method.to_string(),
                            target: head.uri.to_string(),
                            headers: head.headers,
                            text: String::from_utf8(body.to_vec()).unwrap(),
                        };
                        let _ = sender.send(seen.clone());
                        let is_stuck = stuck.text.lock().unwrap().is_some_and(|text| seen.text.contains(text));
                        (if is_stuck { &stuck.gate } else { &gate }).acquire().await.unwrap().forget();
                        let script = script.lock().unwrap().clone();
                        let reply = script(&seen);
                        let mut response = Response::new(Full::new(Bytes::from(reply.body)));
                        *response.status_mut() = reply.status.try_into().unwrap();
                        if let Some(location) = reply.location {
                            response.headers_mut().insert("location", location.parse().unwrap());
                        }
                        Ok::<_, Infallible>(response)
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Api { address, seen, script, gate, stuck }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn answer(&self, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Arc::new(script);
    }

    /// From now on requests are received but not answered.
    pub fn hold(&self) {
        self.gate.forget_permits(OPEN);
    }

    pub fn release(&self) {
        self.gate.add_permits(OPEN / 2);
        self.stuck.gate.add_permits(OPEN);
    }

    pub async fn request(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv()).await.expect("a request within the time").unwrap()
    }

    /// From now on requests with `text` in their body are not answered before the release.
    pub fn hold_those_with(&self, text: &'static str) {
        *self.stuck.text.lock().unwrap() = Some(text);
    }

    /// Requests that arrived and were not looked at.
    pub fn pending(&mut self) -> usize {
        let mut n = 0;
        while self.seen.try_recv().is_ok() {
            n += 1;
        }
        n
    }
}
