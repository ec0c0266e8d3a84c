//! Turns for calls of one endpoint of an API server.
//!
//! Must not know: what is called, and why it takes as long as it does. A server that hangs costs each caller its whole timeout, and
//! nothing else here bounds how many are on their way at once.
//!
//! Invariants: no more than `at_once` calls are under way, and of one lane no more than a quarter of them. What waits is bounded in
//! time and in bytes; whoever comes with more is told to come back later, which passes by itself. Lanes, one for each client group,
//! are served in turns: one that asks for much waits for itself.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// Of the calls under way and of the bytes that wait, what one lane may have.
const SHARE: usize = 4;

/// The bounds of one endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) at_once: usize,
    /// Of the bodies that wait.
    pub(crate) bytes: usize,
    pub(crate) wait: Duration,
}

/// Cheap to clone: all clones are one.
#[derive(Clone)]
pub(crate) struct Lanes(Arc<Shared>);

struct Shared {
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    under_way: usize,
    /// Of everything that waits.
    bytes: usize,
    lanes: HashMap<String, Lane>,
    /// Lanes with something that waits, in the order of their turns; each is here once.
    turns: VecDeque<String>,
}

#[derive(Default)]
struct Lane {
    under_way: usize,
    waiting: VecDeque<Waiting>,
    bytes: usize,
}

struct Waiting {
    bytes: usize,
    /// Whoever has given up has dropped its end.
    turn: oneshot::Sender<Turn>,
}

/// The right to make a call, until it is dropped.
pub(crate) struct Turn {
    shared: Arc<Shared>,
    lane: String,
}

/// There is no turn for this call now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowded;

impl Bounds {
    /// Calls of one lane that are under way.
    fn of_lane(&self) -> usize {
        (self.at_once / SHARE).max(1)
    }
}

impl Lanes {
    pub(crate) fn new(bounds: Bounds) -> Lanes {
        Lanes(Arc::new(Shared { bounds, state: Mutex::default() }))
    }

    /// Waits for the turn of a call of so many bytes in `lane`.
    pub(crate) async fn turn(&self, lane: &str, bytes: usize) -> Result<Turn, Crowded> {
        let Bounds { wait, .. } = self.0.bounds;
        let turn = match self.enter(lane, bytes)? {
            Entered::AtOnce(turn) => return Ok(turn),
            Entered::Waits(turn) => turn,
        };
        match tokio::time::timeout(wait, turn).await {
            Ok(Ok(turn)) => Ok(turn),
            // The sender is dropped with the endpoint only.
            Ok(Err(_)) | Err(_) => Err(Crowded),
        }
    }

    fn enter(&self, lane: &str, bytes: usize) -> Result<Entered, Crowded> {
        let bounds = &self.0.bounds;
        let mut state = self.0.state();
        state.forget_who_gave_up(lane);
        let State { under_way, bytes: all, lanes, turns } = &mut *state;
        let own = lanes.entry(lane.to_owned()).or_default();
        // Whoever waits while there is room waits for its own lane: a turn that ends is given on at once.
        if *under_way < bounds.at_once && own.under_way < bounds.of_lane() && own.waiting.is_empty() {
            *under_way += 1;
            own.under_way += 1;
            return Ok(Entered::AtOnce(self.0.turn_of(lane)));
        }
        // A single call is always heard, however long it is.
        if (*all > 0 && *all + bytes > bounds.bytes) || (own.bytes > 0 && own.bytes + bytes > bounds.bytes / SHARE) {
            state.tidy(lane);
            return Err(Crowded);
        }
        let (turn, told) = oneshot::channel();
        *all += bytes;
        own.bytes += bytes;
        if own.waiting.is_empty() {
            turns.push_back(lane.to_owned());
        }
        own.waiting.push_back(Waiting { bytes, turn });
        Ok(Entered::Waits(told))
    }
}

enum Entered {
    AtOnce(Turn),
    Waits(oneshot::Receiver<Turn>),
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn_of(self: &Arc<Shared>, lane: &str) -> Turn {
        Turn { shared: Arc::clone(self), lane: lane.to_owned() }
    }
}

impl State {
    /// The next that waits and may have a turn, with its lane, which goes to the end.
    fn next(&mut self, of_lane: usize) -> Option<(String, Waiting)> {
        let may = |name: &String| self.lanes.get(name).is_some_and(|lane| lane.under_way < of_lane);
        let name = self.turns.iter().position(may).and_then(|at| self.turns.remove(at))?;
        let lane = self.lanes.get_mut(&name)?;
        let waiting = lane.waiting.pop_front()?;
        lane.bytes -= waiting.bytes;
        self.bytes -= waiting.bytes;
        if !lane.waiting.is_empty() {
            self.turns.push_back(name.clone());
        }
        Some((name, waiting))
    }

    /// Forgets a lane of which nothing is left.
    fn tidy(&mut self, name: &str) {
        if self.lanes.get(name).is_some_and(|lane| lane.under_way == 0 && lane.waiting.is_empty()) {
            self.lanes.remove(name);
        }
    }

    /// What nobody waits for any more takes no room from those of the same lane.
    fn forget_who_gave_up(&mut self, name: &str) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        if !lane.waiting.iter().any(|waiting| waiting.turn.is_closed()) {
            return;
        }
        let before = lane.bytes;
        lane.waiting.retain(|waiting| !waiting.turn.is_closed());
        lane.bytes = lane.waiting.iter().map(|waiting| waiting.bytes).sum();
        self.bytes -= before - lane.bytes;
        if lane.waiting.is_empty() {
            self.turns.retain(|turn| turn != name);
        }
        self.tidy(name);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let of_lane = self.shared.bounds.of_lane();
        let mut state = self.shared.state();
        state.under_way -= 1;
        if let Some(lane) = state.lanes.get_mut(&self.lane) {
            lane.under_way -= 1;
        }
        let mut next = None;
        while let Some((name, waiting)) = state.next(of_lane) {
            if waiting.turn.is_closed() {
                state.tidy(&name);
                continue;
            }
            state.under_way += 1;
            if let Some(lane) = state.lanes.get_mut(&name) {
                lane.under_way += 1;
            }
            next = Some((name, waiting));
            break;
        }
        state.tidy(&self.lane);
        drop(state);
        if let Some((name, waiting)) = next {
            // One that gives up at this moment hands the turn back, which gives it on.
            let _ = waiting.turn.send(self.shared.turn_of(&name));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const BOUNDS: Bounds = Bounds { at_once: 1, bytes: 400, wait: Duration::from_millis(20) };

    fn waiting(lanes: &Lanes, lane: &str, bytes: usize) -> oneshot::Receiver<Turn> {
        match lanes.enter(lane, bytes) {
            Ok(Entered::Waits(told)) => told,
            Ok(Entered::AtOnce(_)) => panic!("{lane} did not wait"),
            Err(Crowded) => panic!("there was no room for {lane}"),
        }
    }

    #[tokio::test]
    async fn lanes_are_served_in_turns() {
        let lanes = Lanes::new(BOUNDS);
        let mut held = Some(lanes.turn("busy", 1).await.unwrap());
        let mut queued: Vec<(usize, oneshot::Receiver<Turn>)> = Vec::new();
        for (n, lane) in ["busy", "busy", "busy", "other", "third"].into_iter().enumerate() {
            queued.push((n, waiting(&lanes, lane, 1)));
        }
        let mut order = Vec::new();
        while !queued.is_empty() {
            drop(held.take());
            let at = queued.iter_mut().position(|(_, told)| {
                held = (&mut *told).now_or_never().and_then(Result::ok);
                held.is_some()
            });
            order.push(queued.remove(at.expect("a turn that ends is given on")).0);
        }
        assert_eq!(order, [0, 3, 4, 1, 2]);
        drop(held);
        let state = lanes.0.state();
        assert!(state.lanes.is_empty() && state.turns.is_empty() && state.under_way == 0 && state.bytes == 0);
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_bytes_for_one_and_for_all() {
        let lanes = Lanes::new(BOUNDS);
        let held = lanes.turn("a", 1000).await.unwrap();
        let mut queued = vec![waiting(&lanes, "a", 90)];
        assert!(lanes.enter("a", 20).is_err(), "a quarter is all that one lane may take");
        queued.extend(["b", "c", "d"].map(|lane| waiting(&lanes, lane, 100)));
        assert!(lanes.enter("e", 20).is_err(), "there is no room for anybody");
        // Who gives up makes room for others of its lane.
        queued.remove(0);
        queued.push(waiting(&lanes, "a", 95));
        queued.clear();
        drop(held);
        // All have given up: the turn is free.
        let again = lanes.turn("z", 1).now_or_never().expect("at once");
        assert!(again.is_ok());
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let lanes = Lanes::new(BOUNDS);
        let held = lanes.turn("a", 1).await.unwrap();
        assert!(lanes.turn("b", 1).await.is_err());
        drop(held);
        assert!(lanes.turn("b", 1).await.is_ok());
    }

    #[tokio::test]
    async fn one_lane_leaves_turns_to_others() {
        let lanes = Lanes::new(Bounds { at_once: 8, ..BOUNDS });
        let held = [lanes.turn("a", 1).await.unwrap(), lanes.turn("a", 1).await.unwrap()];
        let mut third = waiting(&lanes, "a", 1);
        let mut others = Vec::new();
        for lane in ["b", "b", "c", "c", "d", "d"] {
            others.push(lanes.turn(lane, 1).now_or_never().expect("at once").unwrap());
        }
        let mut late = waiting(&lanes, "e", 1);
        // A turn that becomes free is of no use to a lane that has all it may have.
        others.clear();
        assert!(late.try_recv().is_ok() && third.try_recv().is_err());
        drop(held);
        assert!(third.try_recv().is_ok());
    }
}
