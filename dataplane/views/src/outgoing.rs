//! Frames on their way to sockets, held until what they depend on is durable.
//!
//! Invariant: frames of one connection leave in the order they were pushed, and a frame that needs flush n leaves only after
//! n was reported durable.

use std::collections::VecDeque;
use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::api::{ConnectionId, Frame, Full, Outbox};

pub struct Outgoing {
    held_bytes_max: usize,
    durable: u64,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// Connections with held frames and how many.
    blocked: FxHashMap<ConnectionId, usize>,
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
    pub fn new(held_bytes_max: usize) -> Outgoing {
        Outgoing { held_bytes_max, durable: 0, held: VecDeque::new(), held_bytes: 0, blocked: FxHashMap::default() }
    }

    /// Queues a frame that may leave once flush `needs` is durable (0: at once).
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
        self.held_bytes += frame.len();
        if self.held_bytes > self.held_bytes_max {
            self.held_bytes -= frame.len();
            self.forget(connection);
            // The client comes back and catches up when the database is there again.
            let _ = outbox.send(Frame::Close(None));
            return Err(Dropped(connection));
        }
        *self.blocked.entry(connection).or_default() += 1;
        self.held.push_back(Held { needs, connection, outbox: outbox.clone(), frame, mark });
        Ok(())
    }

    /// Everything up to flush `up_to` is durable: lets go what waited for it.
    pub fn flushed(&mut self, up_to: u64, sent: &mut dyn FnMut(Mark)) -> Vec<Dropped> {
        self.durable = self.durable.max(up_to);
        let mut dropped = Vec::new();
        while let Some(held) = self.held.pop_front_if(|held| held.needs <= self.durable) {
            self.held_bytes -= held.frame.len();
            if let Some(count) = self.blocked.get_mut(&held.connection) {
                *count -= 1;
                if *count == 0 {
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
            self.held_bytes = self.held.iter().map(|held| held.frame.len()).sum();
        }
    }

    /// Whether anything is held for a connection.
    pub fn is_held(&self, connection: ConnectionId) -> bool {
        self.blocked.contains_key(&connection)
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
        let mut outgoing = Outgoing::new(1_000);
        let mut sent = |_| {};
        outgoing.push(0, ConnectionId(1), &a, text("1"), None, &mut sent).unwrap();
        outgoing.push(2, ConnectionId(1), &a, text("2"), None, &mut sent).unwrap();
        // Needs nothing, but stands behind a held frame.
        outgoing.push(0, ConnectionId(1), &a, text("3"), None, &mut sent).unwrap();
        outgoing.push(0, ConnectionId(2), &b, text("4"), None, &mut sent).unwrap();
        assert_eq!(a.queued(), 1);
        assert_eq!(b.queued(), 1);
        assert!(outgoing.flushed(1, &mut sent).is_empty());
        assert_eq!(a.queued(), 1);
        assert!(outgoing.flushed(2, &mut sent).is_empty());
        assert_eq!(a.queued(), 3);
        assert!(outgoing.is_empty());
        for expected in ["1", "2", "3"] {
            let Some(Frame::Text(bytes)) = from_a.recv().await else { panic!("text") };
            assert_eq!(bytes, expected);
        }
        assert!(from_b.recv().await.is_some());
    }
}
