//! Answers questions and tidies up.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, Interval, MissedTickBehavior};
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};
use tracing::{info, warn};

use super::connection::{Connection, Parameter};
use super::history::{Delta, History, as_i64, as_version};
use super::session::Session;
use super::write::as_ms;
use super::{Claim, Event, LineageId, NodeId, Question, Request, Tenure, Touched, Verdict, sql};
use crate::limits::Limits;

/// Questions that one read of a history answers.
const BATCH_MAX: usize = 256;

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
                self.take(request, &mut queued, &mut requests).await;
                continue;
            }
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(request) => queued.push_back(request),
                    None => return,
                },
                _ = merge.tick() => {
                    if let Err(error) = self.merge_fragmented().await {
                        self.connection.broken("tidy up", &error).await;
                    }
                }
                _ = purge.tick() => (self.events)(Event::PurgeDue),
            }
        }
    }

    /// Answers a request, and with it others about the same history.
    async fn take(
        &mut self,
        request: Request,
        queued: &mut VecDeque<(u64, Request)>,
        requests: &mut mpsc::UnboundedReceiver<(u64, Request)>,
    ) {
        let mut questions = Vec::new();
        if let Request::Touched(question) = &request {
            while queued.len() < BATCH_MAX
                && let Ok(more) = requests.try_recv()
            {
                queued.push_back(more);
            }
            let durable = *self.durable.borrow();
            let (present, lineage) = (question.present, question.lineage);
            questions.push(question.clone());
            queued.retain(|(after, other)| match other {
                Request::Touched(other)
                    if (other.present, other.lineage) == (present, lineage) && *after <= durable =>
                {
                    questions.push(other.clone());
                    false
                }
                _ => true,
            });
        }
        loop {
            let result = match &request {
                Request::Touched(_) => self.touched(&questions).await,
                other => self.answer(other).await,
            };
            match result {
                Ok(event) => {
                    (self.events)(event);
                    break;
                }
                Err(error) => self.connection.broken("read", &error).await,
            }
        }
        self.connection.succeeded();
    }

    async fn answer(&mut self, request: &Request) -> Result<Event, Error> {
        Ok(match request {
            Request::Claim(claim) => Event::Claimed { id: claim.group.clone(), verdict: self.claim(claim).await? },
            Request::RowSet { lineage } => {
                let rows = self.history(*lineage).await?.and_then(|history| history.latest(*lineage));
                Event::RowSet { lineage: *lineage, rows }
            }
            Request::Touched(_) => unreachable!("answered in batches"),
            Request::Purge { lineages } => Event::Purged { lineages: self.purge(lineages).await? },
        })
    }

    async fn claim(&mut self, claim: &Claim) -> Result<Verdict, Error> {
        let text = sql::claim(&self.schema);
        let (node, version) = (self.node, as_i64(claim.version));
        let (live, keep) = (as_ms(self.limits.node_live), as_ms(self.limits.contested_max));
        loop {
            let client = self.connection.client().await;
            let age = as_ms(claim.connected_at.elapsed());
            let row = client
                .query_typed_one(
                    &text,
                    &[
                        (&claim.group, Type::TEXT),
                        (&node, Type::INT8),
                        (&version, Type::INT8),
                        (&age, Type::INT8),
                        (&live, Type::INT8),
                        (&keep, Type::INT8),
                    ],
                )
                .await?;
            let tenure = || Tenure { group: claim.group.clone(), epoch: row.get(2) };
            return Ok(match row.get(0) {
                // The owner changed in between.
                "again" => continue,
                "owned" => Verdict::Owned {
                    tenure: tenure(),
                    record: row.get(1),
                    bound: as_version(row.get(3)),
                    is_taken_over: row.get::<_, Option<i64>>(4).is_some(),
                },
                "reset" => Verdict::Reset { tenure: tenure() },
                "elsewhere" => {
                    Verdict::Elsewhere { wait: Duration::from_millis(u64::try_from(row.get::<_, i64>(5)).unwrap_or(0)) }
                }
                "older" => Verdict::NewerCopy,
                "unknown" => Verdict::Unknown,
                _ => Verdict::Gone,
            });
        }
    }

    async fn touched(&mut self, questions: &[Question]) -> Result<Event, Error> {
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

    async fn history(&mut self, lineage: LineageId) -> Result<Option<History>, Error> {
        let (schema, hours) = (self.schema.clone(), self.purge_hours);
        let client = self.connection.client().await;
        let wanted: [Parameter<'_>; 2] = [(&lineage, Type::INT8), (&hours, Type::INT4)];
        Ok(history(client.query_typed(&sql::load_history(&schema), &wanted).await?))
    }

    async fn purge(&mut self, lineages: &[LineageId]) -> Result<Vec<LineageId>, Error> {
        let (schema, hours) = (self.schema.clone(), self.purge_hours);
        let unseen = self.limits.node_dead;
        let client = self.connection.client().await;
        client.execute_typed(&sql::touch_lineages(&schema), &[(&lineages, Type::INT8_ARRAY)]).await?;
        purge(&client, &schema, hours, unseen).await
    }

    async fn merge_fragmented(&mut self) -> Result<(), Error> {
        let (least, node) = (self.limits.merge_deltas, self.node);
        let text = sql::fragmented(&self.schema);
        let lineages: Vec<i64> = {
            let client = self.connection.client().await;
            let rows = client.query_typed(&text, &[(&least, Type::INT8), (&node, Type::INT8)]).await?;
            rows.into_iter().map(|row| row.get(0)).collect()
        };
        for lineage in lineages {
            self.merge(lineage).await?;
        }
        Ok(())
    }

    async fn merge(&mut self, lineage: LineageId) -> Result<(), Error> {
        let (schema, hours) = (self.schema.clone(), self.purge_hours);
        let mut client = self.connection.client().await;
        let transaction = client.transaction().await?;
        if transaction.query_typed_opt(&sql::lock_lineage(&schema), &[(&lineage, Type::INT8)]).await?.is_none() {
            return Ok(());
        }
        let wanted: [Parameter<'_>; 2] = [(&lineage, Type::INT8), (&hours, Type::INT4)];
        let Some(history) = history(transaction.query_typed(&sql::load_history(&schema), &wanted).await?) else {
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
        transaction.commit().await
    }
}

/// From the rows of [`sql::load_history`].
fn history(rows: Vec<Row>) -> Option<History> {
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
    client: &Session,
    schema: &str,
    hours: i32,
    unseen: Duration,
) -> Result<Vec<LineageId>, Error> {
    let unseen_ms = as_ms(unseen);
    let dead = client.query_typed(&sql::unseen(schema), &[(&unseen_ms, Type::INT8)]).await?;
    for row in &dead {
        let node: NodeId = row.get(0);
        client.query_typed(&sql::retire(schema), &[(&node, Type::INT8), (&unseen_ms, Type::INT8)]).await?;
    }
    let groups = client.execute_typed(&sql::purge_groups(schema), &[(&hours, Type::INT4)]).await?;
    let gone: Vec<LineageId> = client
        .query_typed(&sql::purge_lineages(schema), &[(&hours, Type::INT4)])
        .await?
        .into_iter()
        .map(|row| row.get(0))
        .collect();
    if groups > 0 || !gone.is_empty() || !dead.is_empty() {
        info!(nodes = dead.len(), groups, lineages = gone.len(), "forgot what was away too long");
    }
    Ok(gone)
}
