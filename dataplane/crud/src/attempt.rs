//! One attempt at one mutation: its statements, sent together as far as none must wait for a decision, and the decisions.
//!
//! Rules for what is changed or deleted look at the rows as they were before the mutation, all of them before anything is written;
//! rules for what is inserted or became of a change look at the rows as the mutation leaves them. A row that the mutation itself made
//! is looked at, before it is changed again, as it is then. Where there is no row, nothing is done and nothing forbidden.

use std::collections::BTreeSet;

use permissions::{Action, Parameters};
use protocol::crud::CrudKind;
use serde_json::{Map, Value};
use tokio_postgres::{Client, Error, Row};
use upstream::App;

use crate::catalog::Tables;
use crate::condition::{Truth, plain};
use crate::fault::Fault;
use crate::pipeline::Pipeline;
use crate::request::Request;
use crate::rules::{Grounds, Rules};
use crate::statement::{Statement, bump};
use crate::step::Step;

/// How an attempt ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Applied,
    /// Denied; the number is taken.
    Denied,
    /// Denied after something was written, which was taken back with the number.
    DeniedUnnumbered,
    AlreadyDone,
    OutOfOrder {
        expected: i64,
    },
    /// The rules in force are others than those that decided.
    RulesChanged,
}

enum Verdict {
    Commit(End),
    RollBack(End),
}

pub(crate) struct Attempt<'a> {
    pub app: &'a App,
    pub request: &'a Request<'a>,
    pub rules: &'a Rules,
    pub tables: &'a Tables,
    /// `None` only takes the number.
    pub steps: Option<&'a [Step<'a>]>,
}

/// What is asked about a step, and the places of the answers.
struct Plan<'a> {
    step: &'a Step<'a>,
    row: Option<Map<String, Value>>,
    look: Option<Statement>,
    /// The look can deny, not only find.
    can_deny: bool,
    after: Option<Statement>,
    looked: Option<usize>,
    looked_again: Option<usize>,
    done: Option<usize>,
    checked: Option<usize>,
}

/// Of a transaction, in order of sending.
struct Answers(Vec<Result<Vec<Row>, Error>>);

impl Answers {
    fn get(&self, place: usize) -> Result<&[Row], Fault> {
        match self.0.get(place) {
            Some(Ok(rows)) => Ok(rows),
            Some(Err(error)) => Err(Fault::of(error)),
            None => Err(Fault::Away("an answer is missing".to_owned())),
        }
    }

    /// The first error is the cause of those behind it.
    fn all_from(&self, place: usize) -> Result<(), Fault> {
        (place..self.0.len()).try_for_each(|place| self.get(place).map(drop))
    }
}

/// The place of the answer to [`bump`]; the one before is BEGIN's.
const NUMBER: usize = 1;

impl<'a> Attempt<'a> {
    /// Leaves no transaction open, unless the connection is away.
    pub(crate) async fn run(&self, client: &Client) -> Result<End, Fault> {
        let mut transaction = Pipeline::begin(client).await;
        match self.decide(&mut transaction).await {
            Ok(Verdict::Commit(end)) => {
                transaction.commit().await.map_err(|error| Fault::of(&error))?;
                Ok(end)
            }
            Ok(Verdict::RollBack(end)) => {
                transaction.roll_back().await.map_err(|error| Fault::of(&error))?;
                Ok(end)
            }
            Err(away @ Fault::Away(_)) => Err(away),
            Err(fault) => {
                transaction.roll_back().await.map_err(|error| Fault::of(&error))?;
                Err(fault)
            }
        }
    }

    async fn decide(&self, transaction: &mut Pipeline<'_>) -> Result<Verdict, Fault> {
        let mut answers = Answers(Vec::new());
        let mut sent = NUMBER + 1;
        transaction.send(bump(self.app, self.request.group, self.request.client)).await;
        let Some(steps) = self.steps else {
            answers.0.extend(transaction.answers().await);
            return Ok(self.number(&answers, false)?.unwrap_or(Verdict::Commit(End::Applied)));
        };
        let mut plans: Vec<Plan<'a>> = steps.iter().map(Plan::new).collect();
        // Rules that compare with the row as it was are written with its values.
        let fetched = self.fetch(transaction, &plans, &mut sent).await;
        if !fetched.is_empty() {
            answers.0.extend(transaction.answers().await);
            if let Some(end) = self.checked(&answers)? {
                return Ok(end);
            }
            for (n, place, columns) in fetched {
                plans[n].row = row(answers.get(place)?, &columns);
            }
        }
        for plan in &mut plans {
            self.prepare(plan);
            plan.looked = send(transaction, plan.look.as_ref(), &mut sent).await;
        }
        if plans.iter().any(|plan| plan.can_deny && !plan.step.is_later) {
            answers.0.extend(transaction.answers().await);
            if let Some(end) = self.checked(&answers)? {
                return Ok(end);
            }
            for plan in plans.iter().filter(|plan| !plan.step.is_later) {
                if !plan.may(&answers)? {
                    self.tell_denied(plan, "before");
                    return Ok(Verdict::Commit(End::Denied));
                }
            }
        }
        for plan in &mut plans {
            if plan.step.is_later {
                plan.looked_again = send(transaction, plan.look.as_ref(), &mut sent).await;
            }
            plan.done = send(transaction, plan.step.statement().as_ref(), &mut sent).await;
        }
        for plan in &mut plans {
            plan.checked = send(transaction, plan.after.as_ref(), &mut sent).await;
        }
        answers.0.extend(transaction.answers().await);
        if let Some(end) = self.checked(&answers)? {
            return Ok(end);
        }
        for (n, plan) in plans.iter().enumerate() {
            if !plan.may(&answers)? {
                self.tell_denied(plan, "before");
                return Ok(Verdict::RollBack(End::DeniedUnnumbered));
            }
            if !plan.might(&answers, &plans[n + 1..])? {
                self.tell_denied(plan, "after");
                return Ok(Verdict::RollBack(End::DeniedUnnumbered));
            }
        }
        Ok(Verdict::Commit(End::Applied))
    }

    /// What follows from the number and the rules; an error if anything else of what was answered is one. A transaction in which a
    /// statement failed ends without effect, be it told to commit.
    fn checked(&self, answers: &Answers) -> Result<Option<Verdict>, Fault> {
        let end = self.number(answers, true)?;
        if end.is_none() {
            answers.all_from(NUMBER)?;
        }
        Ok(end)
    }

    /// What follows from the number that was taken, and, if rules count, from those in force.
    fn number(&self, answers: &Answers, with_rules: bool) -> Result<Option<Verdict>, Fault> {
        answers.get(0)?;
        let [row] = answers.get(NUMBER)? else { return Err(Fault::Away("no number was given".to_owned())) };
        let (expected, hash): (i64, Option<&str>) = (row.get(0), row.get(1));
        Ok(match expected.cmp(&self.request.id) {
            std::cmp::Ordering::Greater => Some(Verdict::RollBack(End::AlreadyDone)),
            std::cmp::Ordering::Less => Some(Verdict::RollBack(End::OutOfOrder { expected })),
            std::cmp::Ordering::Equal if with_rules && hash != self.rules.hash.as_deref() => {
                Some(Verdict::RollBack(End::RulesChanged))
            }
            std::cmp::Ordering::Equal => None,
        })
    }

    fn grounds<'b>(&'b self, row: Option<&'b Map<String, Value>>) -> Grounds<'b> {
        let parameters = Parameters { claims: self.request.claims, row };
        Grounds { rules: self.rules, tables: self.tables, parameters }
    }

    /// Asks for the rows that rules want to compare with; says for which steps, where the answers are, and which columns.
    async fn fetch(
        &self,
        transaction: &mut Pipeline<'_>,
        plans: &[Plan<'a>],
        sent: &mut usize,
    ) -> Vec<(usize, usize, Vec<String>)> {
        let mut fetched = Vec::new();
        for (n, plan) in plans.iter().enumerate() {
            let (table, columns) = (plan.step.row.table, &plan.step.columns);
            let asked = self.grounds(None).asked(actions(plan.step.kind), table, columns);
            let known: Vec<_> = asked.iter().filter_map(|name| table.column(name)).collect();
            if known.is_empty() {
                continue;
            }
            let mut statement = Statement::default();
            let value = |column| format!("pg_catalog.to_json({})::pg_catalog.text", plain_of(column));
            statement.push(&format!("SELECT {}", known.iter().copied().map(value).collect::<Vec<_>>().join(", ")));
            plan.step.row.find(&mut statement, "a0");
            transaction.send(statement).await;
            fetched.push((n, *sent, known.iter().map(|column| column.name.clone()).collect()));
            *sent += 1;
        }
        fetched
    }

    /// What must be asked for a step.
    fn prepare(&self, plan: &mut Plan<'a>) {
        let step = plan.step;
        let (table, columns): (_, &BTreeSet<&str>) = (step.row.table, &step.columns);
        let row = plan.row.take();
        let grounds = self.grounds(row.as_ref());
        let mut look = Statement::default();
        let before = match step.kind {
            CrudKind::Insert => Truth::Always,
            CrudKind::Update | CrudKind::Upsert => grounds.truth(Action::UpdateBefore, table, columns, &mut look),
            CrudKind::Delete => grounds.truth(Action::Delete, table, columns, &mut look),
        };
        let mut after = Statement::default();
        let mut ask = |action| grounds.truth(action, table, columns, &mut after);
        let afters = match step.kind {
            CrudKind::Insert => vec![ask(Action::Insert)],
            CrudKind::Update => vec![ask(Action::UpdateAfter)],
            CrudKind::Upsert => vec![ask(Action::Insert), ask(Action::UpdateAfter)],
            CrudKind::Delete => Vec::new(),
        };
        let is_checked = afters.iter().any(|truth| *truth != Truth::Always);
        plan.can_deny = before != Truth::Always;
        if plan.can_deny || (step.kind == CrudKind::Upsert && is_checked) {
            look.push(&format!("SELECT coalesce({}, false)", before.sql()));
            step.row.find(&mut look, "a0");
            plan.look = Some(look);
        }
        if is_checked {
            let selected = afters.iter().map(|truth| format!("coalesce({}, false)", truth.sql()));
            after.push(&format!("SELECT {}", selected.collect::<Vec<_>>().join(", ")));
            step.row.find(&mut after, "a0");
            plan.after = Some(after);
        }
    }

    fn tell_denied(&self, plan: &Plan<'_>, phase: &'static str) {
        tracing::debug!(
            group = self.request.group,
            client = self.request.client,
            mutation = self.request.id,
            table = plan.step.row.table.name,
            op = plan.step.kind.name(),
            phase,
            "a mutation is denied by the write rules"
        );
    }
}

impl<'a> Plan<'a> {
    fn new(step: &'a Step<'a>) -> Plan<'a> {
        Plan {
            step,
            row: None,
            look: None,
            can_deny: false,
            after: None,
            looked: None,
            looked_again: None,
            done: None,
            checked: None,
        }
    }

    /// Whether the row was there when the operation came to it.
    fn found(&self, answers: &Answers) -> Result<Option<bool>, Fault> {
        match self.looked_again.or(self.looked) {
            Some(place) => Ok(answers.get(place)?.first().map(|row| row.get(0))),
            None => Ok(None),
        }
    }

    /// Whether the row may be changed or deleted as it was.
    fn may(&self, answers: &Answers) -> Result<bool, Fault> {
        let Some(found) = self.found(answers)? else { return Ok(true) };
        let Some(place) = self.looked else { return Ok(found) };
        Ok(answers.get(place)?.first().map_or(found, |row| row.get(0)))
    }

    /// Whether the row may be as it became. `later` are the operations that follow.
    fn might(&self, answers: &Answers, later: &[Plan<'_>]) -> Result<bool, Fault> {
        let (Some(done), Some(checked)) = (self.done, self.checked) else { return Ok(true) };
        if answers.get(done)?.is_empty() {
            return Ok(true);
        }
        let Some(row) = answers.get(checked)?.first() else {
            // Gone by the mutation's own doing, or hidden by a trigger.
            let deletes = |plan: &Plan<'_>| plan.step.kind == CrudKind::Delete && plan.step.row.may_be(&self.step.row);
            return Ok(later.iter().any(deletes));
        };
        let is_change = self.step.kind == CrudKind::Upsert && self.found(answers)?.is_some();
        Ok(row.get(usize::from(is_change)))
    }
}

fn actions(kind: CrudKind) -> &'static [Action] {
    match kind {
        CrudKind::Insert => &[Action::Insert],
        CrudKind::Upsert => &[Action::Insert, Action::UpdateBefore, Action::UpdateAfter],
        CrudKind::Update => &[Action::UpdateBefore, Action::UpdateAfter],
        CrudKind::Delete => &[Action::Delete],
    }
}

fn plain_of(column: &crate::catalog::Column) -> String {
    let sql = format!("a0.{}", column.sql);
    // Integers stay exact.
    if column.ty == rows::ColumnType::Int { sql } else { plain(column, &sql) }
}

fn row(found: &[Row], columns: &[String]) -> Option<Map<String, Value>> {
    let row = found.first()?;
    let value = |n| row.get::<_, Option<&str>>(n).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    Some(columns.iter().enumerate().map(|(n, name)| (name.clone(), value(n))).collect())
}

async fn send(transaction: &mut Pipeline<'_>, statement: Option<&Statement>, sent: &mut usize) -> Option<usize> {
    transaction.send(statement?.clone()).await;
    *sent += 1;
    Some(*sent - 1)
}
