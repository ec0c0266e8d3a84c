//! What the process that owns the slot says of itself: `GET /statz?group=node&format=json`. Of several that could own it, all are
//! asked, for they settle it between them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::certificates::trusting;
use super::slot::Question;
use super::{Node, Servers};
use crate::observe::{BackupFault, Nodes};

const TIME_MAX: Duration = Duration::from_secs(2);
const BODY_MAX: usize = 64 << 10;
const TEXT_MAX: usize = 300;

/// Asks all nodes of a resource. No answer means that nothing is known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Status(pub Vec<Node>);

impl Question for Status {
    type Answer = Option<Nodes>;
    const DOUBTS: u32 = 2;

    async fn ask(self, servers: Arc<Servers>) -> Option<Nodes> {
        let answers = futures_util::future::join_all(self.0.iter().map(|node| asked(node, &servers))).await;
        owners(answers)
    }

    fn is_bad(answer: &Option<Nodes>) -> bool {
        answer.is_none()
    }

    fn is_news(old: &Option<Nodes>, new: &Option<Nodes>) -> bool {
        steady(old) != steady(new)
    }

    fn inherits(&self, old: &Status) -> bool {
        let places =
            |nodes: &[Node]| -> Vec<_> { nodes.iter().map(|it| (it.address, it.generation.clone())).collect() };
        places(&self.0) == places(&old.0)
    }
}

async fn asked(node: &Node, servers: &Servers) -> Option<Nodes> {
    match fetch(node, servers).await {
        Ok(nodes) => Some(nodes),
        Err(error) => {
            tracing::debug!(address = %node.address, %error, "the data plane does not tell its status");
            None
        }
    }
}

/// What the owner of the slot says. Where nobody says that it is, the owner may be one that does not answer; else it is whoever
/// has done an owner's work last.
fn owners(answers: Vec<Option<Nodes>>) -> Option<Nodes> {
    let streaming = answers.iter().flatten().find(|nodes| nodes.streaming == Some(true)).cloned();
    let is_silent = answers.iter().any(Option::is_none);
    streaming.or_else(|| {
        let others = answers.into_iter().flatten().filter(|_| !is_silent);
        others.rev().max_by_key(|nodes| (nodes.snapshot_of.is_some(), nodes.initial_sync, nodes.restoring))
    })
}

/// Without what moves all the time. The lag counts in minutes, like it is shown.
fn steady(nodes: &Option<Nodes>) -> Option<Nodes> {
    let mut nodes = nodes.clone()?;
    nodes.lag_seconds = nodes.lag_seconds.map(|lag| lag / 60);
    nodes.last_backup_at = nodes.last_backup_at.map(|_| Timestamp::UNIX_EPOCH);
    nodes.replica_version = nodes.replica_version.map(|_| String::new());
    Some(nodes)
}

/// Why a node's status is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("it did not answer within {} s", TIME_MAX.as_secs())]
    Timeout,
    #[error("it cannot be reached: {0}")]
    Unreachable(#[from] std::io::Error),
    #[error("security.changeStream.tlsSecretName: {0}")]
    Certificates(String),
    #[error("it does not speak HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its answer broke off, or has more than {BODY_MAX} bytes")]
    Body,
    #[error("its answer is not understood: {0}")]
    Format(#[from] serde_json::Error),
}

async fn fetch(node: &Node, servers: &Servers) -> Result<Nodes, Error> {
    let body = tokio::time::timeout(TIME_MAX, get(node, servers)).await.map_err(|_| Error::Timeout)??;
    let body: Body = serde_json::from_slice(&body)?;
    Ok(body.node.read(&node.pod, &node.generation))
}

async fn get(node: &Node, servers: &Servers) -> Result<Bytes, Error> {
    let stream = TcpStream::connect(node.address).await?;
    let Some(tls) = &node.tls else { return exchange(node, stream).await };
    let client = match &tls.authorities {
        Some(authorities) => trusting(authorities.reveal().as_bytes()),
        None => servers.certificates.client(true),
    };
    let name = ServerName::try_from(tls.name.clone()).map_err(|error| Error::Certificates(error.to_string()))?;
    let connector = TlsConnector::from(Arc::new(client.map_err(Error::Certificates)?));
    exchange(node, connector.connect(name, stream).await?).await
}

async fn exchange(node: &Node, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Bytes, Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let credentials = BASE64_STANDARD.encode(format!("operator:{}", node.password.reveal()));
    let request = Request::get("/statz?group=node&format=json")
        .header(header::HOST, node.address.to_string())
        .header(header::AUTHORIZATION, format!("Basic {credentials}"))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .expect("base64 and addresses are valid in headers");
    let answering = async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(Error::Status(response.status()));
        }
        let body = Limited::new(response.into_body(), BODY_MAX).collect().await.map_err(|_| Error::Body)?;
        Ok(body.to_bytes())
    };
    // The connection moves only while it is polled, and ends with the answer.
    tokio::pin!(answering, connection);
    tokio::select! {
        biased;
        answer = &mut answering => answer,
        ended = &mut connection => {
            ended?;
            answering.await
        }
    }
}

#[derive(Debug, Deserialize)]
struct Body {
    node: Report,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    streaming: Option<bool>,
    initial_sync: bool,
    restoring: bool,
    replica_version: Option<String>,
    lag_seconds: Option<f64>,
    slot_lost: bool,
    backup: Option<Backup>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Backup {
    snapshot_at: Option<f64>,
    last_at: Option<f64>,
    fault: Option<Trouble>,
}

#[derive(Debug, Deserialize)]
struct Trouble {
    kind: String,
    message: String,
}

impl Report {
    /// `generation` is the one that the pod was made for: its backup is in that folder.
    fn read(self, pod: &str, generation: &str) -> Nodes {
        let backup = self.backup.as_ref();
        let fault = backup.and_then(|backup| backup.fault.as_ref()).map(|fault| {
            let text: String = fault.message.chars().take(TEXT_MAX).collect();
            match fault.kind.as_str() {
                "access-denied" => BackupFault::AccessDenied(text),
                _ => BackupFault::Failing(text),
            }
        });
        Nodes {
            pod: pod.to_owned(),
            streaming: self.streaming,
            initial_sync: self.initial_sync,
            restoring: self.restoring,
            replica_version: self.replica_version.map(|version| version.chars().take(TEXT_MAX).collect()),
            lag_seconds: self.lag_seconds.filter(|lag| *lag >= 0.0).map(whole),
            slot_lost: self.slot_lost,
            snapshot_of: backup.and_then(|backup| backup.snapshot_at).map(|_| generation.to_owned()),
            last_backup_at: backup.and_then(|backup| backup.last_at).and_then(time),
            backup_fault: fault,
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
fn whole(seconds: f64) -> u64 {
    seconds as u64
}

#[expect(clippy::cast_possible_truncation, reason = "saturates, and what is no time is refused")]
fn time(seconds: f64) -> Option<Timestamp> {
    Timestamp::from_second(seconds as i64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(node: serde_json::Value) -> Result<Nodes, serde_json::Error> {
        let body: Body = serde_json::from_value(serde_json::json!({ "node": node }))?;
        Ok(body.node.read("shop-rm-0", "v2"))
    }

    fn full() -> serde_json::Value {
        serde_json::json!({
            "role": "replication-manager", "version": "0.1.0", "streaming": true, "initialSync": false, "restoring": false,
            "replicaVersion": "1a2b", "lagSeconds": 1.75, "slotLost": false, "subscribers": 2,
            "backup": { "snapshotAt": 1_700_000_000, "lastAt": 1_700_000_060.5, "fault": null },
        })
    }

    #[test]
    fn a_report_is_read() {
        let nodes = read(full()).unwrap();
        assert_eq!(nodes.streaming, Some(true));
        assert_eq!((nodes.lag_seconds, nodes.snapshot_of.as_deref()), (Some(1), Some("v2")));
        assert_eq!(nodes.last_backup_at.unwrap().as_second(), 1_700_000_060);
        let mut without = full();
        for key in ["streaming", "replicaVersion", "lagSeconds", "subscribers", "backup"] {
            without[key] = serde_json::Value::Null;
        }
        assert_eq!(read(without).unwrap(), Nodes { pod: "shop-rm-0".to_owned(), ..Nodes::default() });
    }

    #[test]
    fn of_two_the_owner_speaks() {
        let node = |pod: &str, streaming, snapshot: Option<&str>| {
            let snapshot_of = snapshot.map(str::to_owned);
            Some(Nodes { pod: pod.to_owned(), streaming: Some(streaming), snapshot_of, ..Nodes::default() })
        };
        let pod = |answers: Vec<Option<Nodes>>| owners(answers).map(|nodes| nodes.pod);
        assert_eq!(pod(vec![node("a", false, None), node("b", true, Some("v1"))]).as_deref(), Some("b"));
        assert_eq!(pod(vec![None, node("b", true, None)]).as_deref(), Some("b"));
        assert_eq!(pod(vec![None, node("b", false, None)]), None, "the owner may be the one that is silent");
        assert_eq!(pod(vec![node("a", false, None), node("b", false, Some("v1"))]).as_deref(), Some("b"));
        assert_eq!(pod(vec![node("a", false, None), node("b", false, None)]).as_deref(), Some("a"));
        assert_eq!(pod(vec![None]), None);
    }

    #[test]
    fn a_backup_at_fault_is_told() {
        let mut report = full();
        report["backup"]["fault"] = serde_json::json!({ "kind": "access-denied", "message": "no" });
        assert_eq!(read(report.clone()).unwrap().backup_fault, Some(BackupFault::AccessDenied("no".to_owned())));
        report["backup"]["fault"]["kind"] = "something-new".into();
        report["backup"]["fault"]["message"] = "x".repeat(5000).into();
        assert_eq!(read(report).unwrap().backup_fault, Some(BackupFault::Failing("x".repeat(300))));
    }

    #[test]
    fn nonsense_is_refused_or_left_out() {
        for (key, value) in [
            ("lagSeconds", serde_json::json!(-5)),
            ("backup", serde_json::json!({ "snapshotAt": 1e300, "lastAt": 1e300, "fault": null })),
        ] {
            let mut report = full();
            report[key] = value;
            let nodes = read(report).unwrap();
            assert!(nodes.lag_seconds.is_none() || nodes.last_backup_at.is_none());
        }
        for (key, value) in [("streaming", serde_json::json!("yes")), ("slotLost", serde_json::json!([]))] {
            let mut report = full();
            report[key] = value;
            assert!(read(report).is_err(), "{key}");
        }
        assert!(read(serde_json::json!([])).is_err());
    }

    #[test]
    fn what_always_moves_is_no_news() {
        let of = |change: &dyn Fn(&mut Nodes)| {
            let mut nodes = read(full()).unwrap();
            change(&mut nodes);
            Some(nodes)
        };
        let old = of(&|_| {});
        let moved = of(&|nodes| {
            nodes.lag_seconds = Some(3);
            nodes.replica_version = Some("1a2c".to_owned());
            nodes.last_backup_at = Timestamp::from_second(1_700_000_099).ok();
        });
        assert!(!Status::is_news(&old, &moved));
        for news in [of(&|nodes| nodes.slot_lost = true), of(&|nodes| nodes.lag_seconds = Some(90)), None] {
            assert!(Status::is_news(&old, &news));
        }
    }
}
