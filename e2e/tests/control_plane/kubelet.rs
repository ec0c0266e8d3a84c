//! Stands in for kubelets and for the data plane: says of every pod of a namespace that it runs, unless its image is told to be
//! broken, and answers for it on `/statz`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What pods and processes do.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Tags of images whose pods crash.
    pub broken: BTreeSet<String>,
    /// Pods that are not ready though they run.
    pub unready: BTreeSet<String>,
    pub is_streaming: bool,
    pub has_snapshot: bool,
    pub has_replica: bool,
}

pub struct Kubelet {
    client: Client,
    namespace: String,
    number: u8,
    behaviour: Arc<Mutex<Behaviour>>,
    _tasks: JoinSet<()>,
}

impl Kubelet {
    pub async fn start(client: Client, namespace: &str, number: u8) -> Result<Kubelet> {
        let behaviour = Behaviour {
            broken: BTreeSet::new(),
            unready: BTreeSet::new(),
            is_streaming: true,
            has_snapshot: true,
            has_replica: true,
        };
        let behaviour = Arc::new(Mutex::new(behaviour));
        // An address of the node's network: Kubernetes takes none of the loopback's for a pod.
        let address = format!("10.88.100.{number}");
        let place = format!("{address}/32");
        let mut ip = tokio::process::Command::new("ip");
        let added = ip.args(["addr", "add", &place, "dev", "lo"]).output().await.context("run ip")?;
        anyhow::ensure!(added.status.success(), "ip addr add: {}", String::from_utf8_lossy(&added.stderr));
        let mut tasks = JoinSet::new();
        for port in [4848, 4849] {
            let listener = TcpListener::bind((address.as_str(), port)).await.context("listen as a pod")?;
            tasks.spawn(answer(listener, Arc::clone(&behaviour)));
        }
        let kubelet = (client.clone(), namespace.to_owned(), Arc::clone(&behaviour));
        tasks.spawn(async move {
            let (client, namespace, behaviour) = kubelet;
            run(client, &namespace, number, &behaviour).await;
        });
        Ok(Kubelet { client, namespace: namespace.to_owned(), number, behaviour, _tasks: tasks })
    }

    /// A pod is not ready any longer.
    pub async fn fail(&self, name: &str) -> Result<()> {
        self.behaviour.lock().unwrap().unready.insert(name.to_owned());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pod = api.get(name).await?;
        tell(&api, &pod, self.number, &self.behaviour).await;
        Ok(())
    }

    /// Pods that failed are ready again.
    pub async fn recover(&self) -> Result<()> {
        let failed = std::mem::take(&mut self.behaviour.lock().unwrap().unready);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        for name in failed {
            tell(&api, &api.get(&name).await?, self.number, &self.behaviour).await;
        }
        Ok(())
    }

    /// Changes what pods do, and says so of those there are.
    pub async fn behave(&self, change: impl FnOnce(&mut Behaviour)) -> Result<()> {
        change(&mut self.behaviour.lock().unwrap());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        for pod in api.list(&Default::default()).await? {
            tell(&api, &pod, self.number, &self.behaviour).await;
        }
        Ok(())
    }
}

async fn run(client: Client, namespace: &str, number: u8, behaviour: &Mutex<Behaviour>) {
    let api: Api<Pod> = Api::namespaced(client, namespace);
    let pods = watcher(api.clone(), watcher::Config::default()).default_backoff().applied_objects();
    let told = pods.try_for_each(|pod| {
        let api = api.clone();
        async move {
            let is_told = pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
            if !is_told {
                tell(&api, &pod, number, behaviour).await;
            }
            Ok(())
        }
    });
    if let Err(error) = told.await {
        eprintln!("the kubelet of {namespace} stopped: {error}");
    }
}

async fn tell(api: &Api<Pod>, pod: &Pod, number: u8, behaviour: &Mutex<Behaviour>) {
    let behaviour = behaviour.lock().unwrap().clone();
    let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default();
    let tag = image.rsplit(':').next().unwrap_or_default();
    let is_broken = behaviour.broken.contains(tag);
    let is_ready = !is_broken && !behaviour.unready.contains(&pod.name_any());
    let state = if is_broken {
        json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } })
    } else {
        json!({ "running": {} })
    };
    let truth = if is_ready { "True" } else { "False" };
    let since = k8s_openapi::jiff::Timestamp::now().to_string();
    let condition = |kind: &str| json!({ "type": kind, "status": truth, "lastTransitionTime": since });
    let ip = format!("10.88.100.{number}");
    let status = json!({ "status": {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{ "ip": ip }],
        "conditions": [condition("Ready"), condition("ContainersReady")],
        "containerStatuses": [{
            "name": "zero-cache", "image": image, "imageID": "", "ready": is_ready, "restartCount": u8::from(is_broken),
            "state": state,
        }],
    }});
    // A pod that is gone by now needs no status.
    if let Err(error) = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status)).await
        && !matches!(&error, kube::Error::Api(status) if status.code == 404 || status.code == 409)
    {
        eprintln!("the kubelet cannot tell of {}: {error}", pod.name_any());
    }
}

/// Answers every request like a data plane that is well.
async fn answer(listener: TcpListener, behaviour: Arc<Mutex<Behaviour>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let behaviour = behaviour.lock().unwrap().clone();
        tokio::spawn(async move {
            let mut asked = Vec::new();
            let mut buffer = [0; 1024];
            while !asked.ends_with(b"\r\n\r\n") {
                match stream.read(&mut buffer).await {
                    Ok(count) if count > 0 => asked.extend_from_slice(&buffer[..count]),
                    _ => return,
                }
            }
            let body = statz(&behaviour).to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes()).await;
        });
    }
}

fn statz(behaviour: &Behaviour) -> Value {
    let now = k8s_openapi::jiff::Timestamp::now().as_second();
    json!({ "node": {
        "role": "replication-manager", "version": "1.0.0", "streaming": behaviour.is_streaming, "initialSync": false,
        "restoring": false, "replicaVersion": behaviour.has_replica.then_some("0001"), "lagSeconds": 0, "slotLost": false, "subscribers": 1,
        "backup": { "snapshotAt": behaviour.has_snapshot.then_some(now), "lastAt": now, "fault": null },
    }})
}
