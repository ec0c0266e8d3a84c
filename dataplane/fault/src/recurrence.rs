//! What fails again where it failed before.

use crate::{Class, Entry};

/// Remembers the last failure: where the stream stood, and what was said. Messages of a failure are the same when the bytes are.
#[derive(Debug, Default)]
pub struct Recurrence {
    last: Option<(u64, String)>,
    times: u32,
}

impl Recurrence {
    /// The class of a failure at `position`. Call it once for each failure.
    pub fn class(&mut self, position: u64, entry: &Entry, message: &str) -> Class {
        let is_same = self.last.as_ref().is_some_and(|(at, said)| *at == position && said == message);
        self.times = if is_same { self.times + 1 } else { 1 };
        self.last = Some((position, message.to_owned()));
        if self.times > 1 { entry.repeated } else { entry.class }
    }

    /// How often the last failure was met in a row.
    #[must_use]
    pub fn times(&self) -> u32 {
        self.times
    }

    /// The position moved, so whatever comes is a new failure.
    pub fn advanced(&mut self) {
        (self.last, self.times) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_at_the_same_position_does_not_pass() {
        let garbled = Entry::new("x", "", Class::Passes, Class::NewCopy, "");
        let mut recurrence = Recurrence::default();
        for (position, message, class, times) in [
            (7, "bad byte", Class::Passes, 1),
            (7, "another bad byte", Class::Passes, 1),
            (7, "another bad byte", Class::NewCopy, 2),
            (8, "another bad byte", Class::Passes, 1),
        ] {
            assert_eq!(
                (recurrence.class(position, &garbled, message), recurrence.times()),
                (class, times),
                "{message}"
            );
        }
        recurrence.advanced();
        assert_eq!(recurrence.class(8, &garbled, "another bad byte"), Class::Passes);
    }
}
