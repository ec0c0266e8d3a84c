//! The rules of every table, and how to get at them.

use std::collections::BTreeMap;

use protocol::ast::Condition;

/// What somebody wants to do with a row or one of its cells. An update is allowed twice: for the row as it was, and as it became.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Select,
    Insert,
    UpdateBefore,
    UpdateAfter,
    Delete,
}

impl Action {
    /// How the text names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Action::Select => "select",
            Action::Insert => "insert",
            Action::UpdateBefore => "update.preMutation",
            Action::UpdateAfter => "update.postMutation",
            Action::Delete => "delete",
        }
    }
}

/// The rules of all tables, by names as Postgres has them. The default allows nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Permissions {
    pub(crate) tables: BTreeMap<String, TableRules>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TableRules {
    pub row: Policies,
    pub cells: BTreeMap<String, Policies>,
}

pub(crate) type Policies = BTreeMap<Action, Policy>;

/// Rules of which one must hold. None holds if there is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    pub(crate) rules: Vec<Condition>,
}

impl Policy {
    /// The conditions, with their parameters as they were written.
    #[must_use]
    pub fn rules(&self) -> &[Condition] {
        &self.rules
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

impl Permissions {
    /// The policy for rows of a table. Without one, nobody may.
    #[must_use]
    pub fn row(&self, table: &str, action: Action) -> Option<&Policy> {
        self.tables.get(table)?.row.get(&action)
    }

    /// The policies for cells of a table, by column. A column without one is decided by the row's policy alone.
    pub fn cells(&self, table: &str, action: Action) -> impl Iterator<Item = (&str, &Policy)> {
        let cells = self.tables.get(table).into_iter().flat_map(|rules| &rules.cells);
        cells.filter_map(move |(column, policies)| Some((column.as_str(), policies.get(&action)?)))
    }

    /// Tables that have any rules.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }
}
