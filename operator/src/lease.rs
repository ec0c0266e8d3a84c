//! Who reconciles: the operator that holds the Lease.
//!
//! A holder renews it. Others take it when it was not renewed for its duration, measured by their own clock from when they last
//! saw it change, so that no two clocks have to agree; a holder that cannot renew stops before that. Every write names the version
//! it is based on: of two that try, one is refused.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::time::Instant;

#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Others may take the Lease when it was not renewed for so long.
    pub duration: Duration,
    /// A holder that could not renew for so long stops.
    pub deadline: Duration,
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { duration: Duration::from_secs(15), deadline: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

pub struct Election {
    api: Api<Lease>,
    name: String,
    holder: String,
    timing: Timing,
    /// The Lease as it was last seen, and since when it has been so.
    seen: Option<(Lease, Instant)>,
}

/// Why a holder is none any longer.
#[derive(Debug, thiserror::Error)]
pub enum Loss {
    #[error("{0} holds the Lease now")]
    Taken(String),
    #[error("the Lease could not be renewed for {} s: {last}", .after.as_secs())]
    Stale { after: Duration, last: String },
}

impl Election {
    /// `holder` must differ between two processes, also between two lives of a pod.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, holder: String, timing: Timing) -> Election {
        Election { api: Api::namespaced(client, namespace), name: name.to_owned(), holder, timing, seen: None }
    }

    /// Waits until the Lease is held.
    pub async fn acquire(&mut self) {
        let mut was_told = false;
        loop {
            match self.attempt().await {
                Ok(None) => return,
                Ok(Some(other)) if !was_told => {
                    tracing::info!(holder = other, "another operator holds the Lease; standing by");
                    was_told = true;
                }
                Ok(Some(_)) => {}
                Err(error) => tracing::warn!(error = error.to_string(), "cannot ask for the Lease"),
            }
            tokio::time::sleep(self.timing.retry).await;
        }
    }

    /// Renews the Lease until it is lost.
    pub async fn hold(&mut self) -> Loss {
        let mut renewed = Instant::now();
        let mut last = String::new();
        loop {
            tokio::time::sleep(self.timing.retry).await;
            let left = self.timing.deadline.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(None)) => {
                    renewed = Instant::now();
                    last.clear();
                }
                Ok(Ok(Some(other))) => return Loss::Taken(other),
                Ok(Err(error)) => {
                    last = error.to_string();
                    tracing::warn!(error = last, "cannot renew the Lease");
                }
                // The last attempt is cut off by the end of the time; an answer before it says more.
                Err(_) if last.is_empty() => "no answer".clone_into(&mut last),
                Err(_) => {}
            }
            if renewed.elapsed() >= self.timing.deadline {
                return Loss::Stale { after: renewed.elapsed(), last };
            }
        }
    }

    /// Gives the Lease back, so that nobody has to wait for its end.
    pub async fn release(&mut self) {
        let Some((lease, _)) = self.seen.take().filter(|(lease, _)| holder(lease) == self.holder) else { return };
        let free = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            ..lease.spec.clone().unwrap_or_default()
        };
        let written = tokio::time::timeout(self.timing.retry, self.write(&lease, free));
        if !matches!(written.await, Ok(Ok(_))) {
            tracing::info!("the Lease could not be given back; it runs out by itself");
        }
    }

    /// Takes or renews the Lease. Another's name, when it is another's.
    async fn attempt(&mut self) -> Result<Option<String>, kube::Error> {
        let written = match self.api.get_opt(&self.name).await? {
            None => {
                let lease = Lease {
                    metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                    spec: Some(self.spec(None)),
                };
                self.api.create(&PostParams::default(), &lease).await
            }
            Some(lease) => {
                let other = holder(&lease);
                self.notice(&lease);
                if other != self.holder && !other.is_empty() && !self.has_run_out() {
                    return Ok(Some(other.to_owned()));
                }
                let spec = self.spec(lease.spec.as_ref());
                self.write(&lease, spec).await
            }
        };
        match written {
            Ok(lease) => {
                self.notice(&lease);
                Ok(None)
            }
            // Somebody was quicker.
            Err(kube::Error::Api(status)) if matches!(status.code, 409) => {
                let lease = self.api.get_opt(&self.name).await?;
                let other = lease.as_ref().map(holder).unwrap_or_default().to_owned();
                // Our own write may have arrived though its answer did not.
                Ok((other != self.holder).then_some(other))
            }
            Err(error) => Err(error),
        }
    }

    /// Refused where the Lease changed since it was read.
    async fn write(&self, based_on: &Lease, spec: LeaseSpec) -> Result<Lease, kube::Error> {
        let resource_version = based_on.metadata.resource_version.clone();
        let metadata = ObjectMeta { resource_version, ..ObjectMeta::default() };
        let next = Lease { metadata, spec: Some(spec) };
        self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(next)).await
    }

    fn notice(&mut self, lease: &Lease) {
        let is_same = self.seen.as_ref().is_some_and(|(seen, _)| seen.spec == lease.spec);
        if !is_same {
            self.seen = Some((lease.clone(), Instant::now()));
        } else if let Some((seen, _)) = &mut self.seen {
            seen.metadata = lease.metadata.clone();
        }
    }

    fn has_run_out(&self) -> bool {
        let Some((lease, since)) = &self.seen else { return false };
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
        since.elapsed() >= Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let was_ours = before.is_some_and(|spec| spec.holder_identity.as_deref() == Some(&self.holder));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        LeaseSpec {
            acquire_time: before
                .filter(|_| was_ours)
                .and_then(|spec| spec.acquire_time.clone())
                .or_else(|| Some(now.clone())),
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: i32::try_from(self.timing.duration.as_secs()).ok(),
            lease_transitions: Some(if was_ours { transitions } else { transitions.saturating_add(1) }),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}
