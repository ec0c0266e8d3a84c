//! Whether the process makes the progress that it should.
//!
//! Must not know: what the parts do. A part is watched only where a restart can help: one that waits for what is away, a
//! database say, is alive.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What `/livez` is answered from. Cheap to clone: all clones are one.
#[derive(Clone, Default)]
pub struct Liveness(Arc<Mutex<Vec<Part>>>);

struct Part {
    id: Arc<()>,
    name: &'static str,
    limit: Duration,
    age: Box<dyn Fn() -> Option<Duration> + Send>,
    is_told: bool,
}

/// A part is watched while this lives.
#[derive(Debug)]
pub struct Watched {
    liveness: Liveness,
    id: Arc<()>,
}

impl Liveness {
    /// Watches a part: `age` says for how long it has made no progress although there was something to do. More than `limit` means
    /// that it is stuck.
    #[must_use]
    pub fn watch(
        &self,
        name: &'static str,
        limit: Duration,
        age: impl Fn() -> Option<Duration> + Send + 'static,
    ) -> Watched {
        let id = Arc::new(());
        self.parts().push(Part { id: Arc::clone(&id), name, limit, age: Box::new(age), is_told: false });
        Watched { liveness: self.clone(), id }
    }

    /// The first part that is stuck. It is logged once.
    #[must_use]
    pub fn stuck(&self) -> Option<&'static str> {
        let mut stuck = None;
        for part in self.parts().iter_mut() {
            let age = (part.age)().filter(|age| *age > part.limit);
            if let Some(age) = age
                && !std::mem::replace(&mut part.is_told, true)
            {
                tracing::error!(part = part.name, seconds = age.as_secs(), "a part of the server makes no progress");
            }
            part.is_told = age.is_some();
            if age.is_some() {
                stuck.get_or_insert(part.name);
            }
        }
        stuck
    }

    fn parts(&self) -> MutexGuard<'_, Vec<Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.parts().iter().map(|part| part.name)).finish()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.liveness.parts().retain(|part| !Arc::ptr_eq(&part.id, &self.id));
    }
}

/// Since when a part has been at one piece of work. Cheap to clone: all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Mutex<Option<Instant>>>);

impl Pulse {
    /// A piece of work begins, whatever was before.
    pub fn begin(&self) {
        *self.since() = Some(Instant::now());
    }

    /// There is nothing to do, or it is for others to go on.
    pub fn rest(&self) {
        *self.since() = None;
    }

    /// For how long the present piece has taken.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.since().map(|since| since.elapsed())
    }

    fn since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_stuck_while_it_is_at_work_for_too_long() {
        let liveness = Liveness::default();
        let (writer, views) = (Pulse::default(), Pulse::default());
        let patience = Duration::from_secs(3600);
        let watch = |name, limit, pulse: &Pulse| {
            let pulse = pulse.clone();
            liveness.watch(name, limit, move || pulse.age())
        };
        let _patient = watch("the writer", patience, &writer);
        let hasty = watch("the views", Duration::ZERO, &views);
        assert_eq!(liveness.stuck(), None, "nothing to do");
        writer.begin();
        assert_eq!(liveness.stuck(), None);
        views.begin();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(liveness.stuck(), Some("the views"));
        views.rest();
        assert_eq!(liveness.stuck(), None);
        views.begin();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(liveness.clone().stuck(), Some("the views"));
        drop(hasty);
        assert_eq!(liveness.stuck(), None, "what is over is not watched");
    }
}
