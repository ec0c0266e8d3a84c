//! Who owns a group: asked for many at once, since many clients come back at once.
//!
//! Must not know: clients, and what a record says.
//!
//! Invariant: a claim that was answered is durable in the CVR database; one that was not may be asked again.

use tokio::time::Duration;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use tracing::warn;

use super::answer::{Answerer, SILENCES_MAX};
use super::connection::Parameter;
use super::fault::Fault;
use super::history::{as_i64, as_version};
use super::reference::{self, Outcome};
use super::write::as_ms;
use super::{Claim, Event, Tenure, Verdict, sql};

/// What Rocicorp's server is about to write is there after so long, or a little later.
const NOT_YET: Duration = Duration::from_millis(200);

/// What the store says of a claim.
enum Said {
    Verdict(Verdict),
    /// Only Rocicorp's server may know the group.
    Unknown,
    /// It is this node's; Rocicorp's server may have served it since.
    Owned {
        verdict: Verdict,
        tenure: Tenure,
    },
    /// The owner changed in between.
    Again,
}

impl<E: Fn(Event)> Answerer<E> {
    /// The verdicts, in the order of the claims.
    pub(super) async fn claim(&mut self, claims: &[Claim]) -> Result<Vec<Verdict>, Fault> {
        let mut verdicts: Vec<Option<Verdict>> = claims.iter().map(|_| None).collect();
        loop {
            let open: Vec<usize> = (0..claims.len()).filter(|at| verdicts[*at].is_none()).collect();
            if open.is_empty() {
                return Ok(verdicts.into_iter().flatten().collect());
            }
            let (mut unknown, mut owned) = (Vec::new(), Vec::new());
            for (at, said) in open.iter().zip(self.ask(claims, &open).await?) {
                match said {
                    Said::Verdict(verdict) => verdicts[*at] = Some(verdict),
                    Said::Unknown => unknown.push(*at),
                    Said::Owned { verdict, tenure } => owned.push((*at, verdict, tenure)),
                    Said::Again => {}
                }
            }
            if !unknown.is_empty() {
                let asked: Vec<&Claim> = unknown.iter().map(|at| &claims[*at]).collect();
                for (at, verdict) in unknown.into_iter().zip(self.inherit(&asked).await?) {
                    verdicts[at] = verdict;
                }
            }
            if !owned.is_empty() {
                let asked: Vec<_> = owned.iter().map(|(_, _, tenure)| (tenure.group.as_str(), tenure.epoch)).collect();
                let void = reference::void(&mut self.connection, &self.schema, self.node, &asked).await?;
                for ((at, verdict, tenure), is_void) in owned.into_iter().zip(void) {
                    if is_void {
                        self.metrics.inherited.with_label_values(&["started_over"]).inc();
                    }
                    verdicts[at] = Some(if is_void { Verdict::Reset { tenure } } else { verdict });
                }
            }
        }
    }

    /// Asks for those of the claims, each in a transaction of its own.
    async fn ask(&mut self, claims: &[Claim], which: &[usize]) -> Result<Vec<Said>, Fault> {
        let text = sql::claim(&self.schema);
        let node = self.node;
        let (live, keep) = (as_ms(self.limits.node_live), as_ms(self.limits.contested_max));
        let numbers = |at: &usize| (as_i64(claims[*at].version), as_ms(claims[*at].connected_at.elapsed()));
        let numbers: Vec<(i64, i64)> = which.iter().map(numbers).collect();
        let asked = which.iter().zip(&numbers).map(|(at, (version, age))| -> [Parameter<'_>; 6] {
            [
                (&claims[*at].group, Type::TEXT),
                (&node, Type::INT8),
                (version, Type::INT8),
                (age, Type::INT8),
                (&live, Type::INT8),
                (&keep, Type::INT8),
            ]
        });
        let asked: Vec<[Parameter<'_>; 6]> = asked.collect();
        let answers = self.connection.query_each(&text, &asked).await?;
        let said = which.iter().zip(answers).map(|(at, rows)| match rows.first() {
            Some(row) => {
                // Rocicorp's server may know of it, too.
                self.is_beside = row.get(6);
                said(&claims[*at], row, self.is_beside)
            }
            // A function answers with one row.
            None => Said::Again,
        });
        Ok(said.collect())
    }

    /// Takes over what Rocicorp's server remembers of groups. `None`: to be asked again.
    async fn inherit(&mut self, claims: &[&Claim]) -> Result<Vec<Option<Verdict>>, Fault> {
        let (node, within) = (self.node, self.limits.answer);
        let mut attempts = 1;
        let outcomes = loop {
            match reference::take(&mut self.connection, &self.schema, node, claims, &self.inherit, within).await {
                Err(Fault::Silent(_)) if attempts >= SILENCES_MAX && claims.len() == 1 => {
                    warn!(
                        "reading what Rocicorp's server remembers of a client group takes too long: its clients start over"
                    );
                    break vec![Outcome::Unusable];
                }
                Err(Fault::Silent(_)) if claims.len() == 1 => attempts += 1,
                outcomes => break outcomes?,
            }
        };
        let counted = |outcome| self.metrics.inherited.with_label_values(&[outcome]).inc();
        let verdict = |(claim, outcome): (&&Claim, Outcome)| match outcome {
            Outcome::Again => None,
            Outcome::Nothing => Some(Verdict::Unknown),
            Outcome::NotYet => Some(Verdict::Elsewhere { wait: NOT_YET }),
            Outcome::Unusable => {
                counted("started_over");
                Some(Verdict::Unknown)
            }
            Outcome::Taken { record, bound } => {
                counted("continued");
                let tenure = Tenure { group: claim.group.clone(), epoch: super::FIRST_EPOCH };
                Some(Verdict::Owned { tenure, record: Some(record), bound, is_taken_over: false })
            }
        };
        Ok(claims.iter().zip(outcomes).map(verdict).collect())
    }
}

fn said(claim: &Claim, row: &Row, is_beside: bool) -> Said {
    let tenure = || Tenure { group: claim.group.clone(), epoch: row.get(2) };
    Said::Verdict(match row.get(0) {
        "again" => return Said::Again,
        "unknown" if is_beside => return Said::Unknown,
        "owned" => {
            let verdict = Verdict::Owned {
                tenure: tenure(),
                record: row.get(1),
                bound: as_version(row.get(3)),
                is_taken_over: row.get::<_, Option<i64>>(4).is_some(),
            };
            if is_beside {
                return Said::Owned { verdict, tenure: tenure() };
            }
            verdict
        }
        "reset" => Verdict::Reset { tenure: tenure() },
        "elsewhere" => {
            Verdict::Elsewhere { wait: Duration::from_millis(u64::try_from(row.get::<_, i64>(5)).unwrap_or(0)) }
        }
        "older" => Verdict::NewerCopy,
        "unknown" => Verdict::Unknown,
        _ => Verdict::Gone,
    })
}
