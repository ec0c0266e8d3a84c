//! What this node is with regard to the change log, as the composition root sees it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use port::Health;
use tokio::sync::watch;

use crate::fanout::Fanout;
use crate::wire::Refusal;

#[derive(Clone)]
pub enum Role {
    /// Not able to serve yet.
    Starting,
    /// Able to take over; `owner` is where the present owner can be reached, empty if that is unknown.
    Standby {
        owner: String,
        /// What the readiness probe says.
        is_ready: bool,
    },
    /// Serves subscribers from this log.
    Owner(Fanout),
    /// For good.
    Draining,
}

impl Role {
    fn is_ready(&self) -> bool {
        matches!(self, Role::Owner(_) | Role::Standby { is_ready: true, .. })
    }
}

/// Set by the composition root, read by the port. Changing the role ends the streams that it does not cover.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

/// Changes arrive from Postgres while this lives.
pub struct Streaming(Gate);

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.inner.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Inner {
    role: watch::Sender<Role>,
    was_ready: AtomicBool,
    is_hindered: AtomicBool,
    /// How many streams of changes arrive from Postgres.
    streams: AtomicUsize,
    /// Owns the log and is not where upstream is yet.
    is_behind: watch::Sender<bool>,
    /// Where the present owner is, as far as this node knows; subscribers are told to the end.
    successor: Mutex<String>,
    /// Requests for the stream that came while another node owned the log, or nobody.
    wanted: watch::Sender<u64>,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate {
            inner: Arc::new(Inner {
                role: watch::Sender::new(Role::Starting),
                was_ready: AtomicBool::new(false),
                is_hindered: AtomicBool::new(false),
                streams: AtomicUsize::new(0),
                is_behind: watch::Sender::new(false),
                successor: Mutex::default(),
                wanted: watch::Sender::new(0),
            }),
        }
    }

    /// Changes the role. Draining is final.
    pub fn set(&self, role: Role) {
        match &role {
            Role::Standby { owner, .. } => owner.clone_into(&mut self.successor()),
            Role::Starting | Role::Owner(_) => self.successor().clear(),
            Role::Draining => {}
        }
        self.inner.role.send_if_modified(|current| {
            let is_final = matches!(current, Role::Draining);
            if !is_final {
                *current = role;
                let is_ready = current.is_ready() && !*self.inner.is_behind.borrow();
                self.inner.was_ready.fetch_or(is_ready, Ordering::AcqRel);
            }
            !is_final
        });
    }

    /// Says to whoever asks that changes arrive here from Postgres.
    #[must_use]
    pub fn streaming(&self) -> Streaming {
        self.inner.streams.fetch_add(1, Ordering::AcqRel);
        Streaming(self.clone())
    }

    pub(crate) fn is_streaming(&self) -> bool {
        self.inner.streams.load(Ordering::Acquire) > 0
    }

    /// Whether something keeps this node from doing its work for now. Probes for readiness say so; subscribers are served all the same.
    pub fn hinder(&self, is_hindered: bool) {
        self.inner.is_hindered.store(is_hindered, Ordering::Relaxed);
    }

    /// Whether this node is yet to get where upstream is. Subscribers are served meanwhile, since they come there no sooner, and told
    /// when it is there; probes are told that it is not ready, unless it was before.
    pub fn set_behind(&self, is_behind: bool) {
        self.inner.is_behind.send_replace(is_behind);
        if !is_behind && self.inner.role.borrow().is_ready() {
            self.inner.was_ready.store(true, Ordering::Release);
        }
    }

    pub(crate) fn behind(&self) -> watch::Receiver<bool> {
        self.inner.is_behind.subscribe()
    }

    #[must_use]
    pub fn role(&self) -> Role {
        self.inner.role.borrow().clone()
    }

    pub(crate) fn health(&self) -> Health {
        let role = self.inner.role.borrow();
        let is_behind = *self.inner.is_behind.borrow();
        let is_hindered = self.inner.is_hindered.load(Ordering::Relaxed);
        match (&*role, self.inner.was_ready.load(Ordering::Acquire)) {
            (Role::Draining, was_ready) => Health::Draining { was_ready },
            (role, was_ready) if role.is_ready() && (was_ready || !is_behind) && !is_hindered => Health::Ready,
            (_, true) => Health::Interrupted,
            (_, false) => Health::Starting,
        }
    }

    /// Completes when a subscriber asks for the stream although this node does not own the log: traffic is routed here, so it is
    /// time to take over.
    pub async fn wanted(&self) {
        let mut wanted = self.inner.wanted.subscribe();
        wanted.borrow_and_update();
        // The sender lives as long as self.
        let _ = wanted.changed().await;
    }

    pub(crate) fn is_draining(&self) -> bool {
        matches!(*self.inner.role.borrow(), Role::Draining)
    }

    pub(crate) async fn draining(&self) {
        let mut role = self.inner.role.subscribe();
        // The sender lives as long as self.
        let _ = role.wait_for(|role| matches!(role, Role::Draining)).await;
    }

    /// What serves subscribers now, or what they are told.
    pub(crate) fn fanout(&self) -> Result<Fanout, Refusal> {
        let role = self.inner.role.borrow();
        match &*role {
            Role::Owner(fanout) => Ok(fanout.clone()),
            other => {
                if matches!(other, Role::Standby { .. }) {
                    self.inner.wanted.send_modify(|n| *n += 1);
                }
                Err(self.refusal(other))
            }
        }
    }

    /// Completes when `fanout` does not serve subscribers any more, with what they are told.
    pub(crate) async fn left(&self, fanout: &Fanout) -> Refusal {
        let mut role = self.inner.role.subscribe();
        let is_other = |role: &Role| !matches!(role, Role::Owner(current) if current.is(fanout));
        match role.wait_for(is_other).await {
            Ok(role) => self.refusal(&role),
            // The sender lives as long as self.
            Err(_) => Refusal::Draining,
        }
    }

    fn successor(&self) -> MutexGuard<'_, String> {
        self.inner.successor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusal(&self, role: &Role) -> Refusal {
        match role {
            Role::Starting => Refusal::Starting,
            Role::Standby { owner, .. } => Refusal::NotOwner { owner: owner.clone() },
            // The log was begun anew under the same owner.
            Role::Owner(_) => Refusal::Busy { reason: "the change log begins anew".to_owned() },
            // A node that steps down may end before every subscriber was told where to go.
            Role::Draining => match self.successor().clone() {
                owner if owner.is_empty() => Refusal::Draining,
                owner => Refusal::NotOwner { owner },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(roles: &[Role]) -> Option<Refusal> {
        let gate = Gate::new();
        roles.iter().for_each(|role| gate.set(role.clone()));
        gate.fanout().err()
    }

    #[test]
    fn a_node_that_is_behind_is_not_ready_unless_it_was() {
        let standby = Role::Standby { owner: String::new(), is_ready: true };
        for was_ready in [false, true] {
            let gate = Gate::new();
            if was_ready {
                gate.set(standby.clone());
            }
            gate.set(Role::Starting);
            gate.set_behind(true);
            // It is about readiness, whatever makes a role ready.
            gate.set(standby.clone());
            assert_eq!(gate.health(), if was_ready { Health::Ready } else { Health::Starting });
            gate.set_behind(false);
            assert_eq!(gate.health(), Health::Ready);
            gate.set_behind(true);
            assert_eq!(gate.health(), Health::Ready);
        }
    }

    #[test]
    fn subscribers_are_sent_to_the_owner_to_the_end() {
        let standby = |is_ready| Role::Standby { owner: "rm-2:4849".to_owned(), is_ready };
        let elsewhere = Some(Refusal::NotOwner { owner: "rm-2:4849".to_owned() });
        assert_eq!(refusal(&[standby(false)]), elsewhere);
        assert_eq!(refusal(&[standby(false), Role::Draining]), elsewhere);
        assert_eq!(refusal(&[Role::Draining]), Some(Refusal::Draining));
        // Whoever is about to take over knows no owner but itself.
        assert_eq!(refusal(&[standby(true), Role::Starting]), Some(Refusal::Starting));
        assert_eq!(refusal(&[standby(true), Role::Starting, Role::Draining]), Some(Refusal::Draining));
        let unknown = Role::Standby { owner: String::new(), is_ready: false };
        assert_eq!(refusal(&[unknown, Role::Draining]), Some(Refusal::Draining));
    }
}
