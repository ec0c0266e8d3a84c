//! The operations of a mutation, checked against the catalog.

use std::collections::BTreeSet;

use protocol::crud::{CrudKind, CrudOp};

use crate::catalog::{Table, Tables};
use crate::statement::{Cell, RowOf, Statement};

/// Operations of a mutation that are compared with each other.
const COMPARED_MAX: usize = 200;

/// One operation.
pub(crate) struct Step<'a> {
    pub kind: CrudKind,
    pub row: RowOf<'a>,
    set: Vec<Cell<'a>>,
    /// Every column that the operation names.
    pub columns: BTreeSet<&'a str>,
    /// An earlier operation of the mutation may be about the same row.
    pub is_later: bool,
}

/// In order. The first that does not fit speaks for all; why is for its client.
pub(crate) fn steps<'a>(ops: &'a [CrudOp], tables: &'a Tables) -> Result<Vec<Step<'a>>, String> {
    let mut steps: Vec<Step<'a>> = Vec::with_capacity(ops.len());
    let mut written = BTreeSet::new();
    for op in ops {
        let mut step = step(op, tables)?;
        // Of many operations those on one table are not compared one by one.
        step.is_later = written.contains(op.table.as_str())
            && (ops.len() > COMPARED_MAX || steps.iter().any(|earlier| earlier.row.may_be(&step.row)));
        written.insert(op.table.as_str());
        steps.push(step);
    }
    Ok(steps)
}

fn step<'a>(op: &'a CrudOp, tables: &'a Tables) -> Result<Step<'a>, String> {
    let table = tables
        .get(&op.table)
        .ok_or_else(|| format!("the table \"{}\" does not exist, is not published, or has no primary key", op.table))?;
    let place = |name: &str| format!("{} of \"{}\"", op.kind.name(), named(table, name));
    let mut cells = Vec::with_capacity(op.value.len());
    for (name, value) in &op.value {
        let column = table.column(name).ok_or_else(|| {
            format!(
                "{}: the column does not exist, is not published, or is of a type that clients do not know",
                place(name)
            )
        })?;
        let text = column.form.text(value).map_err(|why| format!("{}: {why}", place(name)))?;
        cells.push(Cell { column, text });
    }
    if !table.is_key(&op.key) {
        return Err(format!(
            "{} of \"{}\": its primaryKey is no key of the table: {}",
            op.kind.name(),
            op.table,
            op.key.join(", ")
        ));
    }
    if let Some(missing) = op.key.iter().find(|name| !cells.iter().any(|c| c.column.name == **name && c.text.is_some()))
    {
        return Err(format!("{}: a column of the primary key has no value", place(missing)));
    }
    let columns = cells.iter().map(|cell| cell.column.name.as_str()).collect();
    let (key, set) = cells.into_iter().partition(|cell| op.key.contains(&cell.column.name));
    Ok(Step { kind: op.kind, row: RowOf { table, key }, set, columns, is_later: false })
}

fn named(table: &Table, column: &str) -> String {
    format!("{}.{column}", table.name)
}

impl Step<'_> {
    /// What carries it out, and yields a row if anything was done. `None` if there is nothing to do.
    pub(crate) fn statement(&self) -> Option<Statement> {
        match self.kind {
            CrudKind::Insert => Some(self.row.insert(&self.set)),
            CrudKind::Upsert => Some(self.row.upsert(&self.set)),
            CrudKind::Update => self.row.update(&self.set),
            CrudKind::Delete => Some(self.row.delete()),
        }
    }
}
