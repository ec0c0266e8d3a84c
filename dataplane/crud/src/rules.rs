//! Write rules: which hold for an operation, as SQL over its row. And the deployed rules, as far as they were read.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use permissions::{Action, Parameters, Permissions, Policy};
use protocol::ast::{Anchor, Ast, Condition, Field, ValuePosition};
use tokio_postgres::Client;
use upstream::{App, quote_identifier};

use crate::catalog::{Table, Tables};
use crate::condition::{Compiler, Truth};
use crate::statement::Statement;

/// The deployed rules and by what they are known. The default are no rules, which allow nothing.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub hash: Option<String>,
    permissions: Permissions,
}

/// The rules that were read last; every mutation looks in its own transaction whether they are still in force.
#[derive(Debug, Default)]
pub(crate) struct Deployed {
    last: RwLock<Arc<Rules>>,
}

impl Deployed {
    pub(crate) fn last(&self) -> Arc<Rules> {
        Arc::clone(&self.last.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Rules that cannot be read allow nothing.
    pub(crate) async fn load(&self, client: &Client, app: &App) -> Result<(), tokio_postgres::Error> {
        let table = format!("{}.permissions", quote_identifier(&app.id));
        let sql = format!("SELECT p.\"hash\", p.\"permissions\"::text FROM {table} p");
        let row = upstream::isolated(client, false, client.query_typed_opt(&sql, &[])).await?;
        let (hash, text): (Option<String>, Option<String>) = row.map_or((None, None), |row| (row.get(0), row.get(1)));
        let permissions = match text.as_deref().map(Permissions::parse) {
            None => {
                tracing::warn!("no permissions are deployed: every CRUD mutation is denied");
                Permissions::default()
            }
            Some(Ok(permissions)) => permissions,
            Some(Err(error)) => {
                tracing::error!(%error, "the deployed permissions cannot be used: every CRUD mutation is denied");
                Permissions::default()
            }
        };
        *self.last.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Rules { hash, permissions });
        Ok(())
    }
}

/// On what a decision rests.
#[derive(Clone, Copy)]
pub(crate) struct Grounds<'a> {
    pub rules: &'a Rules,
    pub tables: &'a Tables,
    pub parameters: Parameters<'a>,
}

impl<'a> Grounds<'a> {
    /// Whether `action` is allowed on the row `a0` of `table`, in `statement`. `columns` are those that an update is about.
    pub(crate) fn truth(
        &self,
        action: Action,
        table: &'a Table,
        columns: &BTreeSet<&str>,
        statement: &mut Statement,
    ) -> Truth {
        let Some(row) = self.rules.permissions.row(&table.name, action) else { return Truth::Never };
        let cells = self.cells(action, table, columns);
        let mut compiler = Compiler::new(self.tables, statement);
        let mut undecided = Vec::new();
        let mut truths = Vec::new();
        for policy in std::iter::once(row).chain(cells) {
            let bound = policy.bind(&self.parameters);
            undecided.extend(bound.unusable.iter().map(ToString::to_string));
            truths.push(compiler.policy(&bound.condition, table, "a0", &mut undecided));
        }
        for reason in undecided {
            tracing::debug!(table = table.name, action = action.name(), reason, "a write rule cannot be decided");
        }
        Truth::all(truths)
    }

    /// Columns of the row as it was that the rules for `actions` ask for.
    pub(crate) fn asked(&self, actions: &[Action], table: &Table, columns: &BTreeSet<&str>) -> BTreeSet<String> {
        let mut asked = BTreeSet::new();
        for action in actions {
            let row = self.rules.permissions.row(&table.name, *action);
            for policy in row.into_iter().chain(self.cells(*action, table, columns)) {
                policy.rules().iter().for_each(|rule| ask(rule, &mut asked));
            }
        }
        asked
    }

    fn cells<'s>(
        &'s self,
        action: Action,
        table: &'s Table,
        columns: &'s BTreeSet<&str>,
    ) -> impl Iterator<Item = &'s Policy> {
        let is_update = matches!(action, Action::UpdateBefore | Action::UpdateAfter);
        let cells = self.rules.permissions.cells(&table.name, action);
        cells.filter(move |(column, _)| !is_update || columns.contains(column)).map(|(_, policy)| policy)
    }
}

fn ask(condition: &Condition, asked: &mut BTreeSet<String>) {
    match condition {
        Condition::And { conditions } | Condition::Or { conditions } => conditions.iter().for_each(|c| ask(c, asked)),
        Condition::CorrelatedSubquery { related, .. } => ask_ast(&related.subquery, asked),
        Condition::Simple { left, right, .. } => {
            for position in [left, right] {
                if let ValuePosition::Static { anchor: Anchor::PreMutationRow, field } = position {
                    let first = match field {
                        Field::Name(name) => Some(name),
                        Field::Path(path) => path.first(),
                    };
                    asked.extend(first.cloned());
                }
            }
        }
    }
}

fn ask_ast(ast: &Ast, asked: &mut BTreeSet<String>) {
    ast.filter.iter().for_each(|filter| ask(filter, asked));
}
