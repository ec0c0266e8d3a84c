//! Whether a database can be used, and how many connections it has to give.
//!
//! One connection for one look, closed after. The URL's credentials go to the server and nowhere else.

mod address;
mod backend;
mod connect;
mod probe;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use super::slot::Question;
use super::{Inputs, SecretText, Servers, Shard};
use crate::observe::{Fault, Probe};
pub(super) use address::Address;
pub(super) use connect::{Session, connect, described};
pub(super) use probe::{identity, slot_pattern};

/// Longest time for one look.
const TIME_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Upstream,
    Cvr,
    Change,
}

/// Asks one of a resource's databases.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Database {
    part: Part,
    url: SecretText,
    /// URLs of all of the resource's databases: their connections are its own.
    all: Vec<SecretText>,
    shard: Shard,
    namespace: String,
}

impl Database {
    pub fn of(part: Part, inputs: &Inputs) -> Option<Database> {
        let url = match part {
            Part::Upstream => &inputs.upstream,
            Part::Cvr => &inputs.cvr,
            Part::Change => &inputs.change,
        };
        let all = [&inputs.upstream, &inputs.cvr, &inputs.change].into_iter().flatten().cloned().collect();
        let (shard, namespace) = (inputs.shard.clone(), inputs.namespace.clone());
        Some(Database { part, url: url.clone()?, all, shard, namespace })
    }

    async fn look(&self, servers: &Servers) -> Probe {
        let mut probe = Probe {
            server: String::new(),
            checked_at: Timestamp::now(),
            fault: None,
            limits: None,
            slot_lost: false,
            identity: None,
        };
        let address: Address = match self.url.reveal().parse() {
            Ok(address) => address,
            Err(text) => {
                probe.fault = Some(Fault::InvalidUrl(text));
                return probe;
            }
        };
        probe.server = address.server();
        let all: Vec<Address> = self.all.iter().filter_map(|url| url.reveal().parse().ok()).collect();
        let looking = async {
            let session = connect(&address, &self.namespace, &servers.certificates).await?;
            probe::probe(session, self, &all).await
        };
        let outcome = tokio::time::timeout(TIME_MAX, looking).await.unwrap_or_else(|_| {
            Err(Fault::Unreachable(format!("{} does not answer within {} s", address.server(), TIME_MAX.as_secs())))
        });
        match outcome {
            Ok(findings) => {
                probe.fault = findings.fault;
                probe.limits = findings.limits;
                probe.slot_lost = findings.slot_lost;
                probe.identity = findings.identity;
            }
            Err(fault) => probe.fault = Some(fault),
        }
        probe
    }
}

impl Question for Database {
    type Answer = Probe;
    const DOUBTS: u32 = 1;

    async fn ask(self, servers: Arc<Servers>) -> Probe {
        let probe = self.look(&servers).await;
        if let Some(fault) = &probe.fault {
            tracing::debug!(server = probe.server, ?fault, "a database cannot be used");
        }
        probe
    }

    /// A server that is away for a moment has not lost its connections: pools must not be sized anew for it.
    fn complete(answer: &mut Probe, last: &Probe) {
        if answer.fault.is_some() && answer.server == last.server {
            answer.limits = answer.limits.or(last.limits);
            answer.identity = answer.identity.take().or_else(|| last.identity.clone());
        }
    }

    fn is_bad(answer: &Probe) -> bool {
        answer.fault.is_some() || answer.slot_lost
    }

    fn is_news(old: &Probe, new: &Probe) -> bool {
        let limit = |probe: &Probe| probe.limits.map(|limits| limits.connections);
        let state = |probe: &Probe| (probe.server.clone(), probe.fault.clone(), limit(probe), probe.slot_lost);
        state(old) != state(new) || old.identity != new.identity
    }

    fn inherits(&self, old: &Database) -> bool {
        let server = |url: &SecretText| url.reveal().parse::<Address>().ok().map(|address| address.server());
        server(&self.url) == server(&old.url)
    }
}
