pub mod api;
pub mod client;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use gateway::{Gate, Options, Outcome, Server};
use port::{Inside, Pages, StatusPage};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use views::api::{ClientMessage, Command, Connect, ConnectionId, Handle, Outbox, Transformer};

use client::Client;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running gateway whose views are this test.
pub struct Harness {
    pub address: SocketAddr,
    pub gate: Gate,
    pub views: mpsc::UnboundedReceiver<Command>,
    pub transformer: Arc<dyn Transformer>,
    /// The views hold every client's queue; a socket whose queue they drop ends.
    pub outboxes: Vec<Outbox>,
    /// Whether the views let in whoever comes.
    pub is_trusting: bool,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Outcome>,
}

pub fn options() -> Options {
    let mut options = Options::new("zero");
    options.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    options.limits.drain_timeout = Duration::from_secs(5);
    options.limits.drain_lead = Duration::ZERO;
    options
}

/// Of the harness's `/statz`.
pub const ADMIN_PASSWORD: &str = "pw";

pub fn pages(inside: Inside) -> Pages {
    pages_of(&prometheus::Registry::new(), inside)
}

fn pages_of(registry: &prometheus::Registry, inside: Inside) -> Pages {
    let status: port::Status =
        Arc::new(|groups| Box::pin(async move { json!({"os": {"cpus": 2}, "asked": {"groups": groups.join("+")}}) }));
    let failed_logins = prometheus::IntCounter::new("zero_failed_logins_total", "of this test").unwrap();
    registry.register(Box::new(failed_logins.clone())).unwrap();
    let status_page = StatusPage::new(status, Some(ADMIN_PASSWORD), false, failed_logins);
    Pages::new(registry.clone(), status_page, inside)
}

impl Harness {
    pub async fn start(options: Options) -> Harness {
        let harness = Harness::start_closed(options).await;
        harness.0.gate.open(Some(harness.1));
        harness.0
    }

    /// The gate is not open yet; the handle opens it.
    pub async fn start_closed(options: Options) -> (Harness, Handle) {
        let registry = prometheus::Registry::new();
        let server = Server::build(options, &registry, pages_of(&registry, Inside::ShownWhenReady)).await.unwrap();
        let (commands, views) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let address = server.address();
        let gate = server.gate();
        let transformer = server.transformer();
        let task = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        (
            Harness {
                address,
                gate,
                views,
                transformer,
                outboxes: Vec::new(),
                is_trusting: true,
                stop: Some(stop),
                task,
            },
            Handle { commands },
        )
    }

    pub async fn command(&mut self) -> Command {
        timeout(PATIENCE, self.views.recv()).await.expect("a command within the time").expect("the gateway lives")
    }

    pub async fn connect(&mut self) -> Box<Connect> {
        match self.command().await {
            Command::Connect(mut connect) => {
                self.outboxes.push(connect.outbox.clone());
                if self.is_trusting {
                    connect.admission.admit();
                }
                connect
            }
            other => panic!("expected Connect, got {other:?}"),
        }
    }

    pub async fn message(&mut self) -> (ConnectionId, ClientMessage) {
        match self.command().await {
            Command::Message(id, message, _) => (id, message),
            other => panic!("expected Message, got {other:?}"),
        }
    }

    pub async fn disconnect(&mut self) -> ConnectionId {
        match self.command().await {
            Command::Disconnect(id) => id,
            other => panic!("expected Disconnect, got {other:?}"),
        }
    }

    /// A client of group `g` that has received `connected` and whose `initConnection` the views have seen.
    pub async fn client(&mut self, client_id: &str) -> (Client, Box<Connect>) {
        let mut client = Client::connect(self.address, &params(client_id)).await;
        let connect = self.connect().await;
        client.expect("connected").await;
        client.send(r#"["initConnection",{"desiredQueriesPatch":[]}]"#).await;
        self.message().await;
        (client, connect)
    }

    pub fn stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }

    pub async fn outcome(self) -> Outcome {
        timeout(PATIENCE, self.task).await.expect("ends within the time").unwrap()
    }

    pub async fn metrics(&self) -> String {
        client::get(self.address, "/metrics", &[]).await.1
    }
}

/// The path of an ordinary client of group `g`.
pub fn params(client_id: &str) -> String {
    format!(
        "/sync/v51/connect?clientID={client_id}&clientGroupID=g&wsid=w-{client_id}&ts=10532.400000095&lmid=0&baseCookie="
    )
}
