//! Answers questions and tidies up.

use std::collections::VecDeque;
use std::sync::Arc;

use fault::Statement;
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, Interval, MissedTickBehavior};
use tokio_postgres::types::Type;
use tokio_postgres::{Row, Transaction};
use tracing::{error, info, warn};

use super::asked::Asked;
use super::connection::{Connection, Parameter};
use super::fault::Fault;
use super::history::{Delta, History, as_i64, as_version};
use super::reference::{self, Inherit};
use super::write::as_ms;
use super::{Claim, Event, LineageId, Metrics, NodeId, Question, Request, Touched, sql};
use crate::limits::Limits;

/// Requests that are looked at for those that go together.
const BATCH_MAX: usize = 256;
/// What a history may have, for the time that reading it may take.
const HISTORY_BYTES: usize = 64 << 20;
/// A question that got no answer after so many attempts takes too long to answer.
pub(super) const SILENCES_MAX: u32 = 3;
/// A node that was found unseen is gone if none of so many heartbeats came after that.
const SUSPECTED_HEARTBEATS: u32 = 5;

/// Whether the same again may bring the same again.
fn is_lasting(fault: &Fault) -> bool {
    fault.class() == Statement::Refused || matches!(fault, Fault::Silent(_))
}

/// Ticks for the first time after one period.
fn interval_after(period: Duration) -> Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The task that reads.
pub(super) struct Answerer<E> {
    pub connection: Connection,
    pub node: NodeId,
    pub schema: String,
    pub purge_hours: i32,
    pub limits: Limits,
    pub inherit: Inherit,
    /// Whether Rocicorp's server has tables in the same schema, as far as is known.
    pub is_beside: bool,
    pub metrics: Metrics,
    pub durable: watch::Receiver<u64>,
    pub events: Arc<E>,
}

impl<E: Fn(Event)> Answerer<E> {
    pub(super) async fn run(mut self, mut requests: mpsc::UnboundedReceiver<(u64, Request)>) {
        let mut merge = interval_after(self.limits.merge_interval);
        let mut purge = interval_after(self.limits.purge_interval);
        // Requests that were looked at because one before them is of the same kind.
        let mut queued: VecDeque<(u64, Request)> = VecDeque::new();
        loop {
            if let Some((after, request)) = queued.pop_front() {
                if self.durable.wait_for(|durable| *durable >= after).await.is_err() {
                    return;
                }
                let asked = self.gather(request, &mut queued, &mut requests);
                self.answer(asked).await;
                continue;
            }
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(request) => queued.push_back(request),
                    None => return,
                },
                _ = merge.tick() => {
                    if let Err(fault) = self.tidy().await {
                        self.connection.broken("tidy up", &fault).await;
                    }
                }
                _ = purge.tick() => (self.events)(Event::PurgeDue),
            }
        }
    }

    /// A request, and with it those of its kind that one answer may serve.
    fn gather(
        &self,
        first: Request,
        queued: &mut VecDeque<(u64, Request)>,
        requests: &mut mpsc::UnboundedReceiver<(u64, Request)>,
    ) -> Asked {
        let mut asked = match first {
            Request::Claim(claim) => Asked::Claims(vec![claim]),
            Request::Touched(question) => Asked::Touched(vec![question]),
            Request::RowSet { .. } | Request::Purge { .. } => return Asked::One(first),
        };
        while queued.len() < BATCH_MAX
            && let Ok(more) = requests.try_recv()
        {
            queued.push_back(more);
        }
        let durable = *self.durable.borrow();
        for (after, other) in std::mem::take(queued) {
            let left = if after <= durable { asked.join(other) } else { Some(other) };
            queued.extend(left.map(|other| (after, other)));
        }
        asked
    }

    /// Tries until there is an answer, or it is known that there is none.
    async fn answer(&mut self, asked: Asked) {
        let mut parts = VecDeque::from([asked]);
        let mut silences = 0;
        while let Some(asked) = parts.pop_front() {
            match self.attempt(&asked).await {
                Ok(events) => {
                    silences = 0;
                    events.into_iter().for_each(&*self.events);
                }
                // Perhaps that of one of them.
                Err(fault) if asked.is_many_claims() && is_lasting(&fault) => {
                    if let Fault::Silent(_) = fault {
                        self.connection.broken("read", &fault).await;
                    }
                    parts = asked.apart();
                }
                Err(fault) if fault.class() == Statement::Refused || silences >= SILENCES_MAX => {
                    let error = fault.describe();
                    error!(error, "CVR database: cannot answer a question; whoever waits for it starts over");
                    asked.given_up().into_iter().for_each(&*self.events);
                }
                Err(fault) => {
                    if fault.class() == Statement::Missing {
                        // The writer makes them anew.
                        self.connection.pause().await;
                    } else {
                        // To own a group is worth any number of attempts.
                        let may_end = !matches!(asked, Asked::Claims(_));
                        silences += u32::from(may_end && matches!(fault, Fault::Silent(_)));
                        self.connection.broken("read", &fault).await;
                    }
                    parts.push_front(asked);
                }
            }
        }
        self.connection.succeeded();
    }

    async fn attempt(&mut self, asked: &Asked) -> Result<Vec<Event>, Fault> {
        let event = match asked {
            Asked::Claims(claims) => {
                let verdicts = self.claim(claims).await?;
                let claimed = |(claim, verdict): (&Claim, _)| Event::Claimed { id: claim.group.clone(), verdict };
                return Ok(claims.iter().zip(verdicts).map(claimed).collect());
            }
            Asked::Touched(questions) => self.touched(questions).await?,
            Asked::One(Request::RowSet { lineage }) => {
                let rows = self.history(*lineage).await?.and_then(|history| history.latest(*lineage));
                Event::RowSet { lineage: *lineage, rows }
            }
            Asked::One(Request::Purge { lineages }) => Event::Purged { lineages: self.purge(lineages).await? },
            Asked::One(Request::Claim(_) | Request::Touched(_)) => unreachable!("gathered"),
        };
        Ok(vec![event])
    }

    async fn touched(&mut self, questions: &[Question]) -> Result<Event, Fault> {
        let Some(&Question { present, lineage, .. }) = questions.first() else {
            return Ok(Event::Touched(Touched { present: 0, answers: Vec::new(), latest: None }));
        };
        let history = self.history(lineage).await?;
        // What changed after the end of another node's history shows by comparison.
        let latest = history.as_ref().filter(|_| lineage != present).and_then(|history| history.latest(lineage));
        let answer = |question: &Question| {
            let history = history.as_ref().filter(|_| lineage == present || question.held || latest.is_some())?;
            history.touched(lineage, question.since.version, question.held)
        };
        let answers = questions.iter().map(|question| (question.clone(), answer(question))).collect();
        Ok(Event::Touched(Touched { present, answers, latest }))
    }

    async fn history(&mut self, lineage: LineageId) -> Result<Option<History>, Fault> {
        let text = sql::load_history(&self.schema);
        let rows = self
            .connection
            .query(&text, &[(&lineage, Type::INT8), (&self.purge_hours, Type::INT4)], HISTORY_BYTES)
            .await?;
        Ok(history_of(rows))
    }

    async fn purge(&mut self, lineages: &[LineageId]) -> Result<Vec<LineageId>, Fault> {
        let text = sql::touch_lineages(&self.schema);
        self.connection.query(&text, &[(&lineages, Type::INT8_ARRAY)], 0).await?;
        purge(&mut self.connection, &self.schema, self.purge_hours, &self.limits).await
    }

    async fn tidy(&mut self) -> Result<(), Fault> {
        self.merge_fragmented().await?;
        if self.is_beside { reference::clear(&mut self.connection, &self.schema).await } else { Ok(()) }
    }

    async fn merge_fragmented(&mut self) -> Result<(), Fault> {
        let (least, node) = (self.limits.merge_deltas, self.node);
        let text = sql::fragmented(&self.schema);
        let rows = self.connection.query(&text, &[(&least, Type::INT8), (&node, Type::INT8)], 0).await?;
        for row in rows {
            let within = self.limits.answer * 4;
            let lineage: LineageId = row.get(0);
            let merged = tokio::time::timeout(within, self.merge(lineage)).await;
            match merged.unwrap_or(Err(Fault::Silent(within))) {
                // Others need not wait for one that cannot be merged.
                Err(fault) if fault.class() == Statement::Refused => {
                    warn!(lineage, error = fault.describe(), "CVR: left a history unmerged");
                }
                merged => merged?,
            }
        }
        Ok(())
    }

    async fn merge(&mut self, lineage: LineageId) -> Result<(), Fault> {
        let (schema, hours) = (self.schema.clone(), self.purge_hours);
        let mut open = self.connection.opened().await;
        let Some(open) = open.as_mut() else { return Ok(()) };
        let transaction = open.begin().await?;
        if transaction.query_typed_opt(&sql::lock_lineage(&schema), &[(&lineage, Type::INT8)]).await?.is_none() {
            return Ok(());
        }
        let Some(history) = load(&transaction, &schema, lineage, hours).await? else {
            return Ok(());
        };
        let (merged, rebased) = match (history.merged(), history.rebased()) {
            (Ok(merged), Ok(rebased)) => (merged, rebased),
            (Err(error), _) | (_, Err(error)) => {
                warn!(lineage, %error, "CVR: left a damaged history alone");
                return Ok(());
            }
        };
        let delete = sql::delete_deltas(&schema);
        if let Some(merged) = merged {
            let first = as_i64(history.deltas[merged.from].version);
            // The newest of those that were read: newer ones may have come since.
            let last = history.deltas.last().map_or(first, |d| as_i64(d.version));
            transaction
                .execute_typed(&delete, &[(&lineage, Type::INT8), (&first, Type::INT8), (&last, Type::INT8)])
                .await?;
            transaction
                .execute_typed(
                    &sql::insert_delta(&schema),
                    &[(&lineage, Type::INT8), (&last, Type::INT8), (&merged.entries, Type::BYTEA)],
                )
                .await?;
        }
        if let Some((version, base)) = rebased {
            let version = as_i64(version);
            transaction
                .execute_typed(&delete, &[(&lineage, Type::INT8), (&0_i64, Type::INT8), (&version, Type::INT8)])
                .await?;
            transaction
                .execute_typed(
                    &sql::rebase(&schema),
                    &[(&lineage, Type::INT8), (&version, Type::INT8), (&base, Type::BYTEA)],
                )
                .await?;
        }
        Ok(transaction.commit().await?)
    }
}

async fn load(
    transaction: &Transaction<'_>,
    schema: &str,
    lineage: LineageId,
    hours: i32,
) -> Result<Option<History>, Fault> {
    let parameters: [Parameter<'_>; 2] = [(&lineage, Type::INT8), (&hours, Type::INT4)];
    Ok(history_of(transaction.query_typed(&sql::load_history(schema), &parameters).await?))
}

fn history_of(rows: Vec<Row>) -> Option<History> {
    let mut base = None;
    let mut deltas = Vec::with_capacity(rows.len());
    for row in rows {
        let (version, entries) = (as_version(row.get(0)), row.get(1));
        if row.get(3) {
            base = Some((version, entries));
        } else {
            deltas.push(Delta { version, entries, old: row.get(2) });
        }
    }
    // A union promises no order.
    deltas.sort_by_key(|delta| delta.version);
    base.map(|(base_version, base)| History { base_version, base, deltas })
}

/// Forgets nodes that are no more, then what nobody can come back for.
pub(super) async fn purge(
    connection: &mut Connection,
    schema: &str,
    hours: i32,
    limits: &Limits,
) -> Result<Vec<LineageId>, Fault> {
    let (unseen_ms, since_ms) = (as_ms(limits.node_dead), as_ms(limits.heartbeat * SUSPECTED_HEARTBEATS));
    connection.query(&sql::suspect(schema), &[(&unseen_ms, Type::INT8)], 0).await?;
    let dead = connection.query(&sql::unseen(schema), &[(&unseen_ms, Type::INT8), (&since_ms, Type::INT8)], 0).await?;
    for row in &dead {
        let node: NodeId = row.get(0);
        connection.query(&sql::retire(schema), &[(&node, Type::INT8), (&unseen_ms, Type::INT8)], 0).await?;
    }
    let groups = connection.query(&sql::purge_groups(schema), &[(&hours, Type::INT4)], 0).await?.len();
    let gone: Vec<LineageId> = connection
        .query(&sql::purge_lineages(schema), &[(&hours, Type::INT4)], 0)
        .await?
        .into_iter()
        .map(|row| row.get(0))
        .collect();
    if groups > 0 || !gone.is_empty() || !dead.is_empty() {
        info!(nodes = dead.len(), groups, lineages = gone.len(), "forgot what was away too long");
    }
    Ok(gone)
}
