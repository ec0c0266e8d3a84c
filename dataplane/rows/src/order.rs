//! Comparison of rows by a list of columns and directions, as ZQL's `orderBy` means it: null first ascending, strings by UTF-8
//! bytes, `desc` the exact reverse.

use std::cmp::Ordering;

use crate::row::{Key, Row};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Asc,
    Desc,
}

impl Direction {
    #[must_use]
    pub fn apply(self, ordering: Ordering) -> Ordering {
        match self {
            Direction::Asc => ordering,
            Direction::Desc => ordering.reverse(),
        }
    }
}

/// A complete ordering: column positions with directions; ends with the row key, so it never ties between rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SortKey(pub Vec<(usize, Direction)>);

impl SortKey {
    #[must_use]
    pub fn compare(&self, a: &Row, b: &Row) -> Ordering {
        for &(column, direction) in &self.0 {
            match a.get(column).cmp_total(b.get(column)) {
                Ordering::Equal => {}
                unequal => return direction.apply(unequal),
            }
        }
        Ordering::Equal
    }

    /// The cells of the ordering columns, in order: what a bound remembers of a row.
    #[must_use]
    pub fn position(&self, row: &Row) -> Key {
        let columns: Vec<usize> = self.0.iter().map(|&(c, _)| c).collect();
        row.key(&columns)
    }

    /// Compares a row with a position taken by [`SortKey::position`]. A position with fewer cells compares by its prefix.
    #[must_use]
    pub fn compare_to_position(&self, row: &Row, position: &Key) -> Ordering {
        for (i, &(column, direction)) in self.0.iter().enumerate().take(position.len()) {
            match row.get(column).cmp_total(position.get(i)) {
                Ordering::Equal => {}
                unequal => return direction.apply(unequal),
            }
        }
        Ordering::Equal
    }
}
