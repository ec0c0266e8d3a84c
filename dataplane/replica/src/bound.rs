//! Positions in an ordering as SQL: "after this row", for any mix of directions and nulls.
//!
//! Nulls are smallest. Where the rows after a position are those of a range plus the nulls, the scan is split in two, so that
//! both parts are ranges of an index.

use rows::{ColumnType, Direction, Key, Table, ValueRef};

use crate::compile::{Param, Text};
use crate::layout::Layout;

/// How a value compares with the non-null cells of a column as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// By content.
    Same,
    /// Before all of them.
    Below,
    Above,
}

pub(crate) fn class(ty: ColumnType, value: ValueRef<'_>) -> Class {
    let column = match ty {
        ColumnType::Bool => 1,
        ColumnType::Int | ColumnType::Float => 2,
        ColumnType::Str => 3,
        ColumnType::Json | ColumnType::Hidden => 4,
    };
    let value = match value {
        ValueRef::Null => 0,
        ValueRef::Bool(_) => 1,
        ValueRef::Int(_) | ValueRef::Float(_) => 2,
        ValueRef::Str(_) => 3,
        ValueRef::Json(_) => 4,
    };
    match value.cmp(&column) {
        std::cmp::Ordering::Less => Class::Below,
        std::cmp::Ordering::Equal => Class::Same,
        std::cmp::Ordering::Greater => Class::Above,
    }
}

/// A cell of a position, as far as the SQL depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Value,
    Null,
    Below,
    Above,
}

pub(crate) fn shape(ty: ColumnType, value: ValueRef<'_>) -> Shape {
    match class(ty, value) {
        _ if value.is_null() => Shape::Null,
        Class::Same => Shape::Value,
        Class::Below => Shape::Below,
        Class::Above => Shape::Above,
    }
}

/// A part of the rows after a bound, contiguous in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Whole,
    /// Descending: rows with a value in the first column.
    Values,
    /// Descending: the nulls that follow.
    Nulls,
    /// Ascending from a null: the rest of the nulls.
    SameNull,
    /// Ascending: the values that follow.
    NotNull,
}

#[derive(Debug)]
pub(crate) struct Bound {
    columns: Vec<Part>,
    inclusive: bool,
}

#[derive(Debug)]
struct Part {
    column: usize,
    direction: Direction,
    nullable: bool,
    shape: Shape,
    param: Param,
}

impl Bound {
    /// `fixed`: the values belong to the plan, otherwise to the scan's arguments.
    pub(crate) fn new(
        table: &Table,
        order: &[(usize, Direction)],
        position: &Key,
        inclusive: bool,
        fixed: Option<&Key>,
    ) -> Bound {
        let columns = order
            .iter()
            .take(position.len())
            .enumerate()
            .map(|(i, &(column, direction))| Part {
                column,
                direction,
                nullable: !table.columns[column].not_null,
                shape: shape(table.columns[column].ty, position.get(i)),
                param: fixed.map_or(Param::After(i), |key| Param::Fixed(key.get(i).to_owned())),
            })
            .collect();
        Bound { columns, inclusive }
    }

    pub(crate) fn segments(&self) -> Vec<Segment> {
        match self.columns.first() {
            Some(Part { direction: Direction::Desc, nullable: true, shape: Shape::Value, .. }) => {
                vec![Segment::Values, Segment::Nulls]
            }
            Some(Part { direction: Direction::Asc, nullable: true, shape: Shape::Null, .. }) => {
                vec![Segment::SameNull, Segment::NotNull]
            }
            _ => vec![Segment::Whole],
        }
    }

    pub(crate) fn write(&self, text: &mut Text<'_>, layout: &Layout, segment: Segment) {
        let Some(first) = self.columns.first() else {
            return text.push(if self.inclusive { "TRUE" } else { "FALSE" });
        };
        let column = |text: &mut Text<'_>, then: &str| {
            text.column(0, layout, first.column);
            text.push(then);
        };
        match segment {
            Segment::Nulls => return column(text, " IS NULL"),
            Segment::NotNull => return column(text, " IS NOT NULL"),
            Segment::SameNull => {
                column(text, " IS NULL AND ");
                return self.after(text, layout, 1, false);
            }
            Segment::Whole | Segment::Values => {}
        }
        let plain =
            self.columns.iter().all(|p| p.shape == Shape::Value && !p.nullable && p.direction == first.direction);
        if plain {
            return self.row_value(text, layout);
        }
        if first.shape == Shape::Value {
            // The range of the first column by itself is what an index can use.
            match first.direction {
                Direction::Asc => column(text, " >= "),
                Direction::Desc if !first.nullable || segment == Segment::Values => column(text, " <= "),
                Direction::Desc => return self.after(text, layout, 0, false),
            }
            text.param(first.param.clone());
            text.push(" AND ");
        }
        self.after(text, layout, 0, segment == Segment::Values);
    }

    fn row_value(&self, text: &mut Text<'_>, layout: &Layout) {
        let parentheses = if self.columns.len() > 1 { ("(", ")") } else { ("", "") };
        text.push(parentheses.0);
        for (i, part) in self.columns.iter().enumerate() {
            text.push(if i > 0 { ", " } else { "" });
            text.column(0, layout, part.column);
        }
        text.push(parentheses.1);
        text.push(match (self.columns[0].direction, self.inclusive) {
            (Direction::Asc, true) => " >= ",
            (Direction::Asc, false) => " > ",
            (Direction::Desc, true) => " <= ",
            (Direction::Desc, false) => " < ",
        });
        text.push(parentheses.0);
        for (i, part) in self.columns.iter().enumerate() {
            text.push(if i > 0 { ", " } else { "" });
            text.param(part.param.clone());
        }
        text.push(parentheses.1);
    }

    /// The rows after the position in the columns from `at` on; `values_only` leaves the nulls of that column out.
    fn after(&self, text: &mut Text<'_>, layout: &Layout, at: usize, values_only: bool) {
        let Some(part) = self.columns.get(at) else {
            return text.push(if self.inclusive { "TRUE" } else { "FALSE" });
        };
        text.push("(");
        part.strictly_after(text, layout, values_only);
        text.push(" OR ");
        part.equal(text, layout);
        text.push(" AND ");
        self.after(text, layout, at + 1, false);
        text.push(")");
    }
}

impl Part {
    fn strictly_after(&self, text: &mut Text<'_>, layout: &Layout, values_only: bool) {
        let column = |text: &mut Text<'_>, then: &str| {
            text.column(0, layout, self.column);
            text.push(then);
        };
        match (self.direction, self.shape) {
            (Direction::Asc, Shape::Value) => {
                column(text, " > ");
                text.param(self.param.clone());
            }
            (Direction::Asc, Shape::Null | Shape::Below) => column(text, " IS NOT NULL"),
            (Direction::Desc, Shape::Value) if self.nullable && !values_only => {
                text.push("(");
                column(text, " < ");
                text.param(self.param.clone());
                text.push(" OR ");
                column(text, " IS NULL)");
            }
            (Direction::Desc, Shape::Value) => {
                column(text, " < ");
                text.param(self.param.clone());
            }
            (Direction::Desc, Shape::Below) => column(text, " IS NULL"),
            (Direction::Desc, Shape::Above) => text.push("TRUE"),
            (Direction::Asc, Shape::Above) | (Direction::Desc, Shape::Null) => text.push("FALSE"),
        }
    }

    fn equal(&self, text: &mut Text<'_>, layout: &Layout) {
        match self.shape {
            Shape::Value => {
                text.column(0, layout, self.column);
                text.push(" = ");
                text.param(self.param.clone());
            }
            Shape::Null => {
                text.column(0, layout, self.column);
                text.push(" IS NULL");
            }
            Shape::Below | Shape::Above => text.push("FALSE"),
        }
    }
}

/// The range of texts that start as every match of a LIKE pattern must; `None` if matches may start with anything.
pub(crate) fn prefix_range(pattern: &str) -> Option<(String, Option<String>)> {
    let mut prefix = String::new();
    let mut characters = pattern.chars();
    while let Some(c) = characters.next() {
        match c {
            '%' | '_' => break,
            '\\' => prefix.push(characters.next()?),
            c => prefix.push(c),
        }
    }
    if prefix.is_empty() {
        return None;
    }
    let mut end = prefix.clone();
    let successor = loop {
        let Some(last) = end.pop() else { break None };
        if let Some(next) = (last as u32 + 1..=char::MAX as u32).find_map(char::from_u32) {
            end.push(next);
            break Some(end);
        }
    };
    Some((prefix, successor))
}
