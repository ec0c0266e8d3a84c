//! Equality joins between a parent row and child rows.
//!
//! A correlation key holds the joined cells as the child's columns hold them, so that keys taken from either side have equal
//! bytes when they join. A key with a null joins nothing and is never made.

use rows::{ColumnType, Key, Row, RowBuilder, Table, ValueRef};

#[derive(Debug)]
pub struct Correlation {
    /// Positions in the parent's row.
    pub parent: Vec<usize>,
    /// Positions in the child's row, pairwise equal.
    pub child: Vec<usize>,
    parent_types: Vec<ColumnType>,
    child_types: Vec<ColumnType>,
    same_types: bool,
}

impl Correlation {
    #[must_use]
    pub fn new(parent_table: &Table, parent: Vec<usize>, child_table: &Table, child: Vec<usize>) -> Correlation {
        let types = |table: &Table, columns: &[usize]| columns.iter().map(|&c| table.columns[c].ty).collect();
        let (parent_types, child_types) = (types(parent_table, &parent), types(child_table, &child));
        Correlation { same_types: parent_types == child_types, parent, child, parent_types, child_types }
    }

    /// Whether the types of the two sides have any value in common.
    #[must_use]
    pub fn possible(&self) -> bool {
        self.parent_types
            .iter()
            .zip(&self.child_types)
            .all(|(parent, child)| parent.client_name() == child.client_name())
    }

    /// The key of the children that a parent row joins.
    #[must_use]
    pub fn of_parent(&self, row: &Row) -> Option<Key> {
        if self.same_types {
            return joined(row, &self.parent);
        }
        convert(self.parent.iter().map(|&c| row.get(c)), &self.child_types)
    }

    /// The key under which a child row is joined.
    #[must_use]
    pub fn of_child(&self, row: &Row) -> Option<Key> {
        joined(row, &self.child)
    }

    /// The same key as the parent's columns hold it; `None` when no parent can have it.
    #[must_use]
    pub fn in_parent(&self, key: &Key) -> Option<Key> {
        if self.same_types {
            return Some(key.clone());
        }
        convert(key.iter(), &self.parent_types)
    }

    /// Whether two parent rows join the same children.
    #[must_use]
    pub fn same_parent_cells(&self, a: &Row, b: &Row) -> bool {
        self.parent.iter().all(|&c| a.get(c) == b.get(c))
    }
}

/// The cells as they are, unless one is null.
fn joined(row: &Row, columns: &[usize]) -> Option<Key> {
    columns.iter().all(|&c| !row.is_null(c)).then(|| row.key(columns))
}

fn convert<'a>(cells: impl Iterator<Item = ValueRef<'a>>, types: &[ColumnType]) -> Option<Key> {
    let mut key = RowBuilder::new(types.len());
    for (cell, &ty) in cells.zip(types) {
        key.push(cell_as(cell, ty)?);
    }
    Some(key.finish_key())
}

/// `cell` as a column of type `ty` would hold an equal value; `None` if it cannot, or if it is null.
#[must_use]
pub fn cell_as(cell: ValueRef<'_>, ty: ColumnType) -> Option<ValueRef<'_>> {
    // 2^63 as a double: the first value beyond i64.
    const TWO_63: f64 = 9_223_372_036_854_775_808.0;
    match (cell, ty) {
        (ValueRef::Int(_), ColumnType::Int)
        | (ValueRef::Float(_), ColumnType::Float)
        | (ValueRef::Bool(_), ColumnType::Bool)
        | (ValueRef::Str(_), ColumnType::Str) => Some(cell),
        (ValueRef::Int(i), ColumnType::Float) => {
            let f = ValueRef::Float(i as f64);
            f.eq_join(cell).then_some(f)
        }
        (ValueRef::Float(f), ColumnType::Int) => {
            (f.trunc() == f && (-TWO_63..TWO_63).contains(&f)).then_some(ValueRef::Int(f as i64))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_join_across_types_only_when_exactly_equal() {
        let big = (1_i64 << 53) + 1;
        for (cell, ty, expected) in [
            (ValueRef::Int(3), ColumnType::Float, Some(ValueRef::Float(3.0))),
            (ValueRef::Float(3.0), ColumnType::Int, Some(ValueRef::Int(3))),
            (ValueRef::Float(3.5), ColumnType::Int, None),
            (ValueRef::Float(1e19), ColumnType::Int, None),
            (ValueRef::Float(f64::NAN), ColumnType::Int, None),
            (ValueRef::Int(big), ColumnType::Float, None),
            (ValueRef::Int(i64::MAX), ColumnType::Float, None),
            (ValueRef::Null, ColumnType::Int, None),
            (ValueRef::Str("3"), ColumnType::Int, None),
            (ValueRef::Str("x"), ColumnType::Str, Some(ValueRef::Str("x"))),
        ] {
            assert_eq!(cell_as(cell, ty), expected, "{cell:?} as {ty:?}");
        }
    }
}
