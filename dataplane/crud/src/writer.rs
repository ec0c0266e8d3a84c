//! Mutations from outside to their outcome: attempts, and what follows from those that failed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fault::Backoff;
use tokio::sync::{Mutex, MutexGuard};
use upstream::{Address, App};

use crate::attempt::{Attempt, End};
use crate::catalog::Tables;
use crate::fault::Fault;
use crate::known::Known;
use crate::metrics::Metrics;
use crate::pool::{Lent, Pool};
use crate::request::{Outcome, Request};
use crate::rules::Deployed;
use crate::step::steps;

/// Attempts that lose against others' transactions.
const CONFLICTS_MAX: u32 = 10;
/// After so many, those who lose go one after the other.
const CONFLICTS_IN_TURN: u32 = 2;
/// Attempts that find nobody there.
const ABSENCES_MAX: u32 = 6;
/// Attempts under rules or a catalog that turn out to be former ones.
const CHANGES_MAX: u32 = 10;
/// Looks for a mutation that another server or the API server is still at.
const GAPS_MAX: u32 = 2;
const GAP_PAUSE: Duration = Duration::from_millis(100);

const CONFLICT: Backoff = Backoff::new(Duration::from_millis(4), Duration::from_millis(200));
const ABSENCE: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

/// What a caller decides.
#[derive(Clone, Debug)]
pub struct Options {
    pub address: Address,
    pub app: App,
    pub connections_max: usize,
    /// An API server takes numbers of the same clients.
    pub has_custom: bool,
}

/// Shared by all who have mutations.
pub struct Writer {
    options: Options,
    pool: Pool,
    known: Known,
    deployed: Deployed,
    /// Of those who lost more than once.
    turn: Mutex<()>,
    metrics: Metrics,
}

/// Why only the number is taken.
#[derive(Clone, Debug)]
enum Instead {
    Denied,
    Failed(String),
}

/// What was met so far.
struct Course<'a> {
    instead: Option<Instead>,
    conflicts: u32,
    absences: u32,
    changes: u32,
    gaps: u32,
    conflict: Backoff,
    absence: Backoff,
    turn: Option<MutexGuard<'a, ()>>,
    /// When the catalog of the last attempt was read.
    used: Option<Instant>,
    /// When the one was read that did not fit.
    seen: Option<Instant>,
}

impl Writer {
    #[must_use]
    pub fn new(options: Options, metrics: Metrics) -> Writer {
        let pool = Pool::new(options.address.clone(), options.connections_max);
        Writer {
            options,
            pool,
            known: Known::default(),
            deployed: Deployed::default(),
            turn: Mutex::default(),
            metrics,
        }
    }

    /// Applies one mutation, in its turn.
    pub async fn apply(&self, request: &Request<'_>) -> Outcome {
        let started = Instant::now();
        let outcome = self.carry_out(request).await;
        let label = outcome.label();
        self.metrics.mutations.with_label_values(&[label]).inc();
        self.metrics.duration.with_label_values(&[label]).observe(started.elapsed().as_secs_f64());
        outcome
    }

    async fn carry_out(&self, request: &Request<'_>) -> Outcome {
        let mut course = Course {
            instead: None,
            conflicts: 0,
            absences: 0,
            changes: 0,
            gaps: 0,
            conflict: CONFLICT,
            absence: ABSENCE,
            turn: None,
            used: None,
            seen: None,
        };
        loop {
            let ended = match self.attempt(request, &mut course).await {
                Ok(end) => self.follow(end, request, &mut course).await,
                Err(fault) => self.recover(fault, request, &mut course).await,
            };
            if let Some(outcome) = ended {
                return outcome;
            }
        }
    }

    async fn attempt(&self, request: &Request<'_>, course: &mut Course<'_>) -> Result<End, Fault> {
        let lent = self.pool.take().await.map_err(|error| Fault::from(&error))?;
        let ended = self.attempt_on(&lent, request, course).await;
        // One that went away may still be at work on what it was told.
        if !matches!(ended, Err(Fault::Away(_))) {
            self.pool.give_back(lent);
        }
        ended
    }

    async fn attempt_on(&self, lent: &Lent<'_>, request: &Request<'_>, course: &mut Course<'_>) -> Result<End, Fault> {
        let tables = self.tables(lent, course).await?;
        let rules = self.deployed.last();
        let steps = match &course.instead {
            Some(_) => None,
            None => match steps(request.ops, &tables) {
                Ok(steps) => Some(steps),
                // The table or the column's type may be another one meanwhile.
                Err(message) => {
                    return Err(Fault::Refused {
                        message,
                        is_schema: true,
                        about: "it does not fit the tables".to_owned(),
                    });
                }
            },
        };
        let attempt =
            Attempt { app: &self.options.app, request, rules: &rules, tables: &tables, steps: steps.as_deref() };
        let end = attempt.run(&lent.client).await?;
        if end == End::RulesChanged {
            self.deployed.load(&lent.client, &self.options.app).await.map_err(|error| Fault::of(&error))?;
        }
        Ok(end)
    }

    async fn tables(&self, lent: &Lent<'_>, course: &mut Course<'_>) -> Result<Arc<Tables>, Fault> {
        let fresh = self.known.fresh().filter(|(read_at, _)| course.seen.is_none_or(|seen| *read_at > seen));
        let (read_at, tables) = match fresh {
            Some(known) => known,
            None => {
                let read = self.known.read(&lent.client, &self.options.app, course.seen).await;
                match read.map_err(|error| Fault::from(&error))? {
                    Some(known) => known,
                    // It was read just now, and will not be another so soon.
                    None => self.known.fresh().ok_or(Fault::Conflict)?,
                }
            }
        };
        course.used = Some(read_at);
        Ok(tables)
    }

    /// `None`: once more.
    async fn follow(&self, end: End, request: &Request<'_>, course: &mut Course<'_>) -> Option<Outcome> {
        match end {
            End::Applied => Some(match course.instead.take() {
                None => Outcome::Applied,
                Some(Instead::Denied) => Outcome::Denied,
                Some(Instead::Failed(message)) => Outcome::Failed(message),
            }),
            End::Denied => Some(Outcome::Denied),
            End::DeniedUnnumbered => {
                course.instead = Some(Instead::Denied);
                None
            }
            End::AlreadyDone => Some(Outcome::AlreadyDone),
            End::OutOfOrder { .. } if self.options.has_custom && course.gaps < GAPS_MAX => {
                course.gaps += 1;
                tokio::time::sleep(GAP_PAUSE).await;
                None
            }
            End::OutOfOrder { expected } => Some(Outcome::OutOfOrder { expected }),
            End::RulesChanged => {
                course.changes += 1;
                if course.changes > CHANGES_MAX {
                    let message = "the rules change faster than they can be read".to_owned();
                    return self.fail(message, "rules", request, course);
                }
                None
            }
        }
    }

    /// `None`: once more.
    async fn recover<'a>(&'a self, fault: Fault, request: &Request<'_>, course: &mut Course<'a>) -> Option<Outcome> {
        match fault {
            Fault::Conflict => {
                self.metrics.conflicts.inc();
                course.conflicts += 1;
                if course.conflicts > CONFLICTS_MAX {
                    let message = format!("{CONFLICTS_MAX} attempts lost against other transactions");
                    return self.fail(message, "conflicts", request, course);
                }
                tokio::time::sleep(course.conflict.pause()).await;
                if course.conflicts >= CONFLICTS_IN_TURN && course.turn.is_none() {
                    course.turn = Some(self.turn.lock().await);
                }
                None
            }
            Fault::Away(message) => {
                course.absences += 1;
                tracing::warn!(error = message, "the database for CRUD mutations is away");
                if course.absences > ABSENCES_MAX {
                    return Some(Outcome::Unavailable(message));
                }
                course.turn = None;
                tokio::time::sleep(course.absence.pause()).await;
                None
            }
            Fault::Refused { is_schema: true, about, .. } if course.seen.is_none() && course.instead.is_none() => {
                course.seen = course.used;
                tracing::debug!(about, "a mutation does not fit the known schema, which is read again");
                None
            }
            Fault::Refused { message, about, .. } => self.fail(message, &about, request, course),
        }
    }

    /// Only the number is taken from now on; what fails then is not the mutation's fault.
    fn fail(&self, message: String, about: &str, request: &Request<'_>, course: &mut Course<'_>) -> Option<Outcome> {
        if course.instead.is_some() {
            tracing::error!(about, "the number of a CRUD mutation cannot be taken");
            return Some(Outcome::Unavailable(message));
        }
        tracing::warn!(
            group = request.group,
            client = request.client,
            mutation = request.id,
            about,
            "a CRUD mutation cannot be carried out"
        );
        (course.conflicts, course.changes) = (0, 0);
        course.instead = Some(Instead::Failed(message));
        None
    }
}
