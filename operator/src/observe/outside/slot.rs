//! One question about one resource: its last answer, and when it is asked again. Pure but for the asking itself.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Servers;

/// Something that a server outside the cluster's API can answer.
pub(super) trait Question: Clone + PartialEq + Send + Sync + 'static {
    type Answer: Clone + Send + Sync + 'static;
    /// Bad answers in a row that are not believed while an earlier answer was good.
    const DOUBTS: u32;

    fn ask(self, servers: Arc<Servers>) -> impl Future<Output = Self::Answer> + Send;

    /// Takes over from the last answer what a failed one cannot say.
    fn complete(_answer: &mut Self::Answer, _last: &Self::Answer) {}

    /// Something is wrong: ask again soon.
    fn is_bad(answer: &Self::Answer) -> bool;

    /// Planning comes to something else with the new answer; numbers that always move are none.
    fn is_news(old: &Self::Answer, new: &Self::Answer) -> bool;

    /// The old question's answer stands until the new one has its own.
    fn inherits(&self, old: &Self) -> bool;
}

/// How often a kind of question is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// While something is wrong or under way.
    pub quick: Duration,
    /// Else, and of servers that keep failing.
    pub slow: Duration,
}

/// Failures that are followed quickly; after those the pauses double.
const QUICK_FAILURES: u32 = 3;

impl Rhythm {
    fn pause(self, is_busy: bool, failures: u32) -> Duration {
        if failures == 0 && !is_busy {
            return self.slow;
        }
        let doublings = failures.saturating_sub(QUICK_FAILURES).min(16);
        self.quick.saturating_mul(1 << doublings).min(self.slow)
    }
}

#[derive(Debug)]
pub(super) struct Slot<Q: Question> {
    question: Option<Q>,
    answer: Option<Q::Answer>,
    /// The question of the answer's turn; answers to earlier ones are dropped.
    turn: u64,
    is_running: bool,
    due: Instant,
    failures: u32,
    doubts: u32,
}

impl<Q: Question> Slot<Q> {
    pub fn new(now: Instant) -> Slot<Q> {
        Slot { question: None, answer: None, turn: 0, is_running: false, due: now, failures: 0, doubts: 0 }
    }

    /// Sets what is asked from now on; a new question is asked at once.
    pub fn pose(&mut self, question: Option<Q>, now: Instant) {
        if self.question == question {
            return;
        }
        let keeps = matches!((&question, &self.question), (Some(new), Some(old)) if new.inherits(old));
        let answer = self.answer.take().filter(|_| keeps);
        *self = Slot { question, answer, turn: self.turn + 1, ..Slot::new(now) };
    }

    /// Asks again before the time is up, for things became urgent.
    pub fn hurry(&mut self, quick: Duration, now: Instant) {
        if self.failures == 0 {
            self.due = self.due.min(now + quick);
        }
    }

    pub fn answer(&self) -> Option<&Q::Answer> {
        self.answer.as_ref()
    }

    pub fn is_pending(&self) -> bool {
        self.question.is_some() && self.answer.is_none()
    }

    /// When it is to be asked, unless it is being asked.
    pub fn due(&self) -> Option<Instant> {
        (self.question.is_some() && !self.is_running).then_some(self.due)
    }

    /// Takes the question to be asked now.
    pub fn begin(&mut self) -> Option<(Q, u64)> {
        let question = self.question.clone()?;
        self.is_running = true;
        Some((question, self.turn))
    }

    /// Takes an answer; says whether it is news.
    pub fn finish(&mut self, turn: u64, mut answer: Q::Answer, rhythm: Rhythm, is_busy: bool, now: Instant) -> bool {
        if turn != self.turn {
            return false;
        }
        self.is_running = false;
        if let Some(last) = &self.answer {
            Q::complete(&mut answer, last);
        }
        let is_bad = Q::is_bad(&answer);
        self.failures = if is_bad { self.failures.saturating_add(1) } else { 0 };
        let was_good = self.answer.as_ref().is_some_and(|old| !Q::is_bad(old));
        if is_bad && was_good && self.doubts < Q::DOUBTS {
            self.doubts += 1;
            self.due = now + rhythm.quick / 3;
            return false;
        }
        self.doubts = 0;
        self.due = now + rhythm.pause(is_busy, self.failures);
        let is_news = self.answer.as_ref().is_none_or(|old| Q::is_news(old, &answer));
        self.answer = Some(answer);
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Ask(u32);

    impl Question for Ask {
        type Answer = i32;
        const DOUBTS: u32 = 1;

        async fn ask(self, _: Arc<Servers>) -> i32 {
            0
        }

        fn is_bad(answer: &i32) -> bool {
            *answer < 0
        }

        fn is_news(old: &i32, new: &i32) -> bool {
            old != new
        }

        fn inherits(&self, old: &Ask) -> bool {
            self.0 / 10 == old.0 / 10
        }
    }

    const RHYTHM: Rhythm = Rhythm { quick: Duration::from_secs(15), slow: Duration::from_secs(60) };

    fn give(slot: &mut Slot<Ask>, answer: i32, now: Instant) -> bool {
        let (_, turn) = slot.begin().unwrap();
        assert_eq!(slot.due(), None, "asked twice at a time");
        slot.finish(turn, answer, RHYTHM, false, now)
    }

    fn after(slot: &Slot<Ask>, now: Instant) -> u64 {
        (slot.due().unwrap() - now).as_secs()
    }

    #[test]
    fn answers_are_asked_for_again_and_failures_ever_more_seldom() {
        let now = Instant::now();
        let mut slot = Slot::new(now);
        assert!(!slot.is_pending() && slot.due().is_none());
        slot.pose(Some(Ask(1)), now);
        assert!(slot.is_pending() && slot.due() == Some(now));
        assert!(give(&mut slot, 7, now), "the first answer is news");
        assert_eq!(after(&slot, now), 60);
        assert!(!give(&mut slot, 7, now), "the same again is none");
        assert!(!give(&mut slot, -1, now), "one bad answer is not believed");
        assert_eq!((slot.answer(), after(&slot, now)), (Some(&7), 5));
        assert!(give(&mut slot, -1, now));
        let pauses: Vec<u64> = (0..6)
            .map(|_| {
                give(&mut slot, -1, now);
                after(&slot, now)
            })
            .collect();
        assert_eq!(pauses, [15, 30, 60, 60, 60, 60]);
        assert!(give(&mut slot, 7, now), "good news is believed at once");
    }

    #[test]
    fn a_changed_question_is_asked_at_once_and_old_answers_are_dropped() {
        let now = Instant::now();
        let mut slot = Slot::new(now);
        slot.pose(Some(Ask(10)), now);
        let (_, turn) = slot.begin().unwrap();
        slot.pose(Some(Ask(20)), now);
        assert_eq!(slot.due(), Some(now), "it waits for an answer to another question");
        assert!(!slot.finish(turn, 1, RHYTHM, false, now));
        assert!(slot.is_pending());
        give(&mut slot, 2, now);
        slot.pose(Some(Ask(21)), now);
        assert_eq!(slot.answer(), Some(&2), "the same server's answer stands meanwhile");
        slot.pose(Some(Ask(30)), now);
        assert!(slot.is_pending());
        slot.pose(None, now);
        assert_eq!((slot.due(), slot.begin().is_none(), slot.is_pending()), (None, true, false));
    }

    #[test]
    fn what_becomes_urgent_is_asked_earlier_but_a_failing_server_is_not_pressed() {
        let now = Instant::now();
        let mut slot = Slot::new(now);
        slot.pose(Some(Ask(1)), now);
        give(&mut slot, 1, now);
        slot.hurry(RHYTHM.quick, now);
        assert_eq!(after(&slot, now), 15);
        for _ in 0..8 {
            give(&mut slot, -1, now);
        }
        slot.hurry(RHYTHM.quick, now);
        assert_eq!(after(&slot, now), 60);
    }
}
