//! Client-defined queries: restricted by the permissions that are deployed, for the user of their client group.
//!
//! The permissions are a row of a replicated table, so they have a version like everything else: what is told at a version follows
//! the rules of that version, on every node. When they change, and when a user's claims change, the queries that are concerned get
//! another materialisation, and whoever holds rows of the former one is told nothing before the new one is there; it then goes on by the
//! difference.
//!
//! A client group is one user's; its queries follow the claims of the newest token (by its time of issue) among its connections.
//!
//! Permissions that cannot be read allow nothing. The rules before them could show what the new ones forbid, and would be known to some
//! nodes only.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ivm::filter::Filter;
use ivm::source::{ScanArgs, ScanPlan, Source};
use permissions::{Action, Parameters, Permissions, restrict};
use protocol::ast::Ast;
use replica::Reader;
use rows::{Batch, Direction, Schema, SortKey, ValueRef, Version};
use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::Value;
use tracing::{error, info, warn};

use crate::api::{ConnectionContext, ConnectionId};
use crate::connection::{Connection, History, Phase};
use crate::convert::tables_of;
use crate::core::Core;
use crate::decide::decide;
use crate::group::record::Definition;
use crate::group::{Group, GroupId};
use crate::materialisation::MaterialisationId;
use crate::materialisations::Unserved;
use crate::row_id::RowId;

/// Plan ids outside the engine count down from the top.
const PLAN: u64 = u64::MAX - 2;
/// How long changed permissions may keep the thread in one step. Groups that it does not get to wait for the next one.
const SLICE: Duration = Duration::from_millis(50);
/// Conditions and subqueries of all queries that one group may have looked at in one go, with the rules in them.
const NODES_MAX: usize = 400_000;
const SWITCHED_OFF: &str = "queries defined in the client are switched off (ZERO_ALLOW_LEGACY_QUERIES=false): \
                            define the query on the API server";

/// The deployed permissions at the version of the views.
#[derive(Default)]
pub struct Rules {
    /// Their text, if any are deployed.
    text: Option<String>,
    permissions: Permissions,
    /// Groups whose queries may still be by former rules: nobody in them is told anything.
    pub unsettled: BTreeSet<GroupId>,
    /// What the log was told of since the permissions changed.
    warned: FxHashSet<String>,
}

/// Rows of materialisations that several groups hold, collected once.
type HeldRows = FxHashMap<MaterialisationId, Arc<Vec<RowId>>>;

/// Which of a group's client-defined queries to look at.
#[derive(Clone, Copy)]
pub enum Which<'a> {
    /// Those without a materialisation.
    New,
    /// All, also those that failed: it may have been by what has changed.
    All,
    /// Like all, but only those that read one of these tables.
    Reading(&'a BTreeSet<String>),
}

impl Rules {
    /// Whether a batch can have changed the permissions in a table.
    fn are_touched(batch: &Batch, table: &str) -> bool {
        batch.schema.is_some() || batch.tables.iter().any(|t| *t.table.name == *table)
    }

    fn warn_once(&mut self, subject: String, warn: impl FnOnce(&str)) {
        if !self.warned.contains(&subject) {
            warn(&subject);
            self.warned.insert(subject);
        }
    }
}

/// The text of the permissions, at the reader's snapshot.
fn read(reader: &mut Reader, schema: &Schema, table: &str) -> Result<Option<String>, String> {
    let Some(table) = schema.tables.get(table) else { return Ok(None) };
    let Some(column) = table.position("permissions") else { return Ok(None) };
    let plan = ScanPlan {
        id: PLAN,
        table: Arc::clone(table),
        constraint: Vec::new(),
        filter: Filter::And(Vec::new()),
        order: SortKey(table.key.iter().map(|&c| (c, Direction::Asc)).collect()),
        start: None,
    };
    let mut text = None;
    let mut each = |row: rows::Row| {
        if let ValueRef::Json(found) = row.get(column) {
            text = Some(found.to_owned());
        }
        ControlFlow::Break(())
    };
    reader.scan(&plan, ScanArgs::default(), &mut each).map_err(|error| error.to_string())?;
    Ok(text)
}

/// Tables whose readers are others now.
fn changed(before: &Permissions, after: &Permissions) -> BTreeSet<String> {
    let tables = before.tables().chain(after.tables());
    let differs = |table: &&str| before.row(table, Action::Select) != after.row(table, Action::Select);
    tables.filter(differs).map(str::to_owned).collect()
}

impl Core {
    /// Whether the permissions may be others after the batches that the views have not taken yet.
    pub(crate) fn rules_are_touched(&self) -> bool {
        let table = &self.options.permissions_table;
        self.materialisations.batches_after(self.version).any(|batch| Rules::are_touched(batch, table))
    }

    /// Takes over the permissions of the reader's snapshot, and turns to whom they concern. To be called before the materialisations are
    /// brought to that snapshot: whatever comes of it by former rules is said to nobody.
    pub(crate) fn take_rules(&mut self) -> Result<(), String> {
        let text = read(&mut self.reader, &self.schema, &self.options.permissions_table)?;
        if text == self.rules.text {
            return Ok(());
        }
        let parsed = text.as_deref().map_or_else(|| Ok(Permissions::default()), Permissions::parse);
        self.options.metrics.permissions_unreadable.set(i64::from(parsed.is_err()));
        let permissions = parsed.unwrap_or_else(|error| {
            error!(
                table = self.options.permissions_table,
                %error,
                "the deployed permissions cannot be read: client-defined queries have no rows and CRUD mutations are denied; \
                 deploy them again"
            );
            Permissions::default()
        });
        let changed = changed(&self.rules.permissions, &permissions);
        info!(tables = changed.len(), "took over the deployed permissions");
        self.rules =
            Rules { text, permissions, unsettled: std::mem::take(&mut self.rules.unsettled), ..Rules::default() };
        if changed.is_empty() {
            return Ok(());
        }
        let until = Instant::now() + SLICE;
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        let mut rows = HeldRows::default();
        for group in groups {
            if Instant::now() < until {
                if self.define(group, Which::Reading(&changed)) {
                    self.hold(group, &mut rows);
                }
            } else if self.groups.get(&group).is_some_and(Group::defines_queries) {
                self.hold(group, &mut rows);
                self.rules.unsettled.insert(group);
            }
        }
        self.want_step |= !self.rules.unsettled.is_empty();
        Ok(())
    }

    /// Goes on with the groups that changed permissions left waiting.
    pub(crate) fn settle_rules(&mut self) {
        let until = Instant::now() + SLICE;
        while let Some(group) = self.rules.unsettled.pop_first() {
            self.define(group, Which::All);
            if Instant::now() >= until {
                break;
            }
        }
        self.want_step |= !self.rules.unsettled.is_empty();
    }

    /// Nobody in the group is told anything before all its queries follow what is in force; then each goes on from where it is.
    fn hold(&mut self, group_id: GroupId, rows: &mut HeldRows) {
        let Some(group) = self.groups.get(&group_id) else { return };
        for id in group.connections.clone() {
            self.hold_connection(id, rows);
        }
        self.dirty.insert(group_id);
        self.want_step = true;
    }

    /// Remembers which rows an active connection has by client-defined queries: those go of which what it joins with knows nothing.
    /// What the former materialisations become from now on must not be said to it, not even which rows they no longer have.
    fn hold_connection(&mut self, id: ConnectionId, rows: &mut HeldRows) {
        let Some(connection) = self.connections.get_mut(&id).filter(|c| c.phase == Phase::Active) else { return };
        let Some(group) = self.groups.get(&connection.group) else { return };
        connection.phase = Phase::Joining;
        for (hash, query) in &group.record.queries {
            let Definition::Ast(_) = &query.definition else { continue };
            let held = group.queries.get(hash).and_then(|run| run.held);
            let Some((held, holding)) = held.zip(query.holding.as_ref()) else { continue };
            let Some(materialisation) = self.materialisations.get(held) else { continue };
            let rows = rows.entry(held).or_insert_with(|| Arc::new(materialisation.rows_left(Version::ZERO)));
            let history = History { covers: self.version, rows: Arc::clone(rows) };
            connection.touched.insert((holding.lineage, true), history);
        }
    }

    /// Decides anew whose claims a group's queries follow, and lets them follow.
    pub(crate) fn take_claims(&mut self, group_id: GroupId) {
        let Some(group) = self.groups.get(&group_id) else { return };
        let candidates = group.connections.iter().filter_map(|id| self.connections.get(id)).filter(|c| c.validated);
        let newest = candidates.max_by(|a, b| {
            let key = |c: &Connection| (issued_at(&c.context), c.validated_at);
            let ((a, at), (b, bt)) = (key(a), key(b));
            a.total_cmp(&b).then(at.cmp(&bt))
        });
        // While nobody is there, nobody is told anything either.
        let Some(context) = newest.map(|c| Arc::clone(&c.context)) else { return };
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        let same = group.acting.as_ref().is_some_and(|acting| acting.claims == context.claims);
        group.acting = Some(context);
        self.define(group_id, if same { Which::New } else { Which::All });
    }

    /// A connection's claims were replaced: nothing that its former ones led to goes to it any more.
    pub(crate) fn claims_replaced(&mut self, id: ConnectionId) {
        let Some(group) = self.connections.get(&id).map(|connection| connection.group) else { return };
        if self.groups.get(&group).is_some_and(Group::defines_queries) {
            self.hold_connection(id, &mut HeldRows::default());
            self.dirty.insert(group);
            self.want_step = true;
        }
    }

    /// Gives a group's client-defined queries the materialisations that rules and claims lead to. Whether one that is held is to be
    /// replaced.
    pub(crate) fn define(&mut self, group_id: GroupId, which: Which<'_>) -> bool {
        let Some(group) = self.groups.get_mut(&group_id) else { return false };
        let Some(acting) = group.acting.clone() else { return false };
        let mut chosen: Vec<(String, Box<Ast>)> = Vec::new();
        for (hash, query) in &mut group.record.queries {
            let Definition::Ast(ast) = &query.definition else { continue };
            let started = group.queries.get(hash).is_some_and(|run| run.held.is_some() || run.coming.is_some());
            let is_chosen = match which {
                Which::New => !started && query.failed.is_none(),
                Which::All => true,
                Which::Reading(tables) => tables_of(ast).iter().any(|table| tables.contains(*table)),
            };
            if is_chosen {
                group.pending.record |= query.failed.take().is_some();
                chosen.push((hash.clone(), ast.clone()));
            }
        }
        if chosen.is_empty() {
            return false;
        }
        self.next_attempt += 1;
        let attempt = self.next_attempt;
        let mut replaces = false;
        let mut nodes = NODES_MAX;
        for (hash, ast) in chosen {
            let Some(keys) = self.groups.get(&group_id).map(|group| Arc::clone(&group.keys)) else { break };
            let made = self
                .restricted(&ast, &acting, &mut nodes)
                .map_err(Unserved::Query)
                .and_then(|ast| self.materialise(group_id, &ast, &keys));
            match made {
                Ok(materialisation) => self.subscribed(group_id, &hash, attempt, materialisation),
                Err(why) => self.unserved(group_id, &hash, why),
            }
            let run = self.groups.get(&group_id).and_then(|group| group.queries.get(&hash));
            replaces |= run.is_none_or(|run| run.held.is_some() && run.coming.is_some());
        }
        self.dirty.insert(group_id);
        self.want_step = true;
        replaces
    }

    fn restricted(&mut self, ast: &Ast, acting: &ConnectionContext, nodes: &mut usize) -> Result<Ast, String> {
        if !self.options.client_queries {
            return Err(SWITCHED_OFF.to_owned());
        }
        let parameters = Parameters { claims: acting.claims.as_ref().and_then(Value::as_object), row: None };
        let restricted = restrict(ast, &self.rules.permissions, &parameters).map_err(|error| error.to_string())?;
        *nodes = nodes.checked_sub(restricted.nodes).ok_or_else(|| {
            format!("with the read rules in them, the client group's queries have more than {NODES_MAX} conditions and subqueries")
        })?;
        let are_deployed = self.rules.text.is_some();
        // Names that no table has are the client's invention.
        for table in restricted.ruleless.iter().filter(|table| self.schema.tables.contains_key(table.as_str())) {
            self.rules.warn_once(table.clone(), |table| {
                let reason = if are_deployed { "it has no rule for select" } else { "no permissions are deployed" };
                warn!(table, reason, "client-defined queries get no rows of a table");
            });
        }
        for (table, why) in restricted.unusable {
            self.rules.warn_once(format!("{table}: {why}"), |_| {
                warn!(
                    table,
                    claim = why.parameter,
                    reason = why.reason,
                    "a read rule allows a user nothing for a claim of the wrong kind"
                );
            });
        }
        Ok(decide(&restricted.ast))
    }
}

/// Of the token; before all that say it when it does not say.
fn issued_at(context: &ConnectionContext) -> f64 {
    let claims = context.claims.as_ref();
    claims.and_then(|claims| claims.get("iat")).and_then(Value::as_f64).unwrap_or(f64::NEG_INFINITY)
}
