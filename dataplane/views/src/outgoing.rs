//! Frames on their way to sockets, held until what they depend on is durable.
//!
//! Invariant: frames of one connection leave in the order they were pushed, and a frame that needs flush n leaves only after
//! n was reported durable.

use std::collections::VecDeque;
use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::api::{ConnectionId, Frame, Full, Outbox};

#[derive(Default)]
pub struct Outgoing {
    durable: u64,
    held: VecDeque<Held>,
    /// Connections with held frames.
    blocked: FxHashMap<ConnectionId, Blocked>,
}

#[derive(Default)]
struct Blocked {
    frames: usize,
    bytes: usize,
}

struct Held {
    needs: u64,
    connection: ConnectionId,
    outbox: Outbox,
    frame: Frame,
    mark: Option<Mark>,
}

/// Says when a poke's end left, and for which upstream commit.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// When the commit happened upstream, microseconds since the Unix epoch.
    pub commit_time_us: i64,
}

/// A connection that could not take a frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Dropped(pub ConnectionId);

impl Outgoing {
    /// Queues a frame that may leave once flush `needs` is durable (0: at once). How much is held for a connection is bounded by
    /// whoever makes pokes (`backlog`).
    pub fn push(
        &mut self,
        needs: u64,
        connection: ConnectionId,
        outbox: &Outbox,
        frame: Frame,
        mark: Option<Mark>,
        sent: &mut dyn FnMut(Mark),
    ) -> Result<(), Dropped> {
        if needs <= self.durable && !self.blocked.contains_key(&connection) {
            return send(connection, outbox, frame, mark, sent);
        }
        let blocked = self.blocked.entry(connection).or_default();
        blocked.frames += 1;
        blocked.bytes += frame.len();
        self.held.push_back(Held { needs, connection, outbox: outbox.clone(), frame, mark });
        Ok(())
    }

    /// Everything up to flush `up_to` is durable: lets go what waited for it.
    pub fn flushed(&mut self, up_to: u64, sent: &mut dyn FnMut(Mark)) -> Vec<Dropped> {
        self.durable = self.durable.max(up_to);
        let mut dropped = Vec::new();
        while let Some(held) = self.held.pop_front_if(|held| held.needs <= self.durable) {
            if let Some(blocked) = self.blocked.get_mut(&held.connection) {
                blocked.frames -= 1;
                blocked.bytes -= held.frame.len();
                if blocked.frames == 0 {
                    self.blocked.remove(&held.connection);
                }
            }
            dropped.extend(send(held.connection, &held.outbox, held.frame, held.mark, sent).err());
        }
        dropped.dedup();
        dropped
    }

    /// Gives up what is held for a connection.
    pub fn forget(&mut self, connection: ConnectionId) {
        if self.blocked.remove(&connection).is_some() {
            self.held.retain(|held| held.connection != connection);
        }
    }

    /// Whether anything is held for a connection.
    pub fn is_held(&self, connection: ConnectionId) -> bool {
        self.blocked.contains_key(&connection)
    }

    /// Bytes held for a connection.
    pub fn held_bytes(&self, connection: ConnectionId) -> usize {
        self.blocked.get(&connection).map_or(0, |blocked| blocked.bytes)
    }

    pub fn durable(&self) -> u64 {
        self.durable
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

fn send(
    connection: ConnectionId,
    outbox: &Outbox,
    frame: Frame,
    mark: Option<Mark>,
    sent: &mut dyn FnMut(Mark),
) -> Result<(), Dropped> {
    outbox.send(frame).map_err(|Full| Dropped(connection))?;
    if let Some(mark) = mark {
        sent(mark);
    }
    Ok(())
}

/// Microseconds since the Unix epoch.
pub fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    u64::try_from(now_us() / 1_000).unwrap_or(0)
}

/// Whether `at` has come.
pub fn due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn text(s: &'static str) -> Frame {
        Frame::Text(Bytes::from_static(s.as_bytes()))
    }

    #[tokio::test]
    async fn frames_wait_for_their_flush_and_keep_their_order() {
        let (a, mut from_a) = Outbox::new(1_000);
        let (b, mut from_b) = Outbox::new(1_000);
        let mut outgoing = Outgoing::default();
        let mut sent = |_| {};
        outgoing.push(0, ConnectionId(1), &a, text("1"), None, &mut sent).unwrap();
        outgoing.push(2, ConnectionId(1), &a, text("2"), None, &mut sent).unwrap();
        // Needs nothing, but stands behind a held frame.
        outgoing.push(0, ConnectionId(1), &a, text("3"), None, &mut sent).unwrap();
        outgoing.push(0, ConnectionId(2), &b, text("4"), None, &mut sent).unwrap();
        assert_eq!(a.queued(), 1);
        assert_eq!(b.queued(), 1);
        assert_eq!((outgoing.held_bytes(ConnectionId(1)), outgoing.held_bytes(ConnectionId(2))), (2, 0));
        assert!(outgoing.flushed(1, &mut sent).is_empty());
        assert_eq!(a.queued(), 1);
        assert!(outgoing.flushed(2, &mut sent).is_empty());
        assert_eq!(a.queued(), 3);
        assert!(outgoing.is_empty() && outgoing.held_bytes(ConnectionId(1)) == 0);
        for expected in ["1", "2", "3"] {
            let Some(Frame::Text(bytes)) = from_a.recv().await else { panic!("text") };
            assert_eq!(bytes, expected);
        }
        assert!(from_b.recv().await.is_some());
    }
}
