//! Comparisons with literals, checked against the column and reduced to what can still vary.

use std::sync::Arc;

use rows::{Column, ColumnType, Table, Value};

use crate::build::{BuildError, MAX_IN_VALUES};
use crate::correlation::cell_as;
use crate::filter::Filter;
use crate::like::{Pattern, is_literal};
use crate::query::{Literal, Op};

pub(crate) const TRUE: Filter = Filter::And(Vec::new());
pub(crate) const FALSE: Filter = Filter::Or(Vec::new());

pub(crate) fn is_true(filter: &Filter) -> bool {
    matches!(filter, Filter::And(parts) if parts.is_empty())
}

pub(crate) fn is_false(filter: &Filter) -> bool {
    matches!(filter, Filter::Or(parts) if parts.is_empty())
}

/// The filter of one comparison.
pub(crate) fn comparison(table: &Table, column: usize, op: Op, literal: &Literal) -> Result<Filter, BuildError> {
    let spec = &table.columns[column];
    match (op, literal) {
        (Op::In | Op::NotIn, Literal::Many(values)) => membership(table, spec, column, op == Op::NotIn, values),
        (Op::In | Op::NotIn, Literal::One(_)) => Err(mismatch(table, spec, op, "a list of values")),
        (_, Literal::Many(_)) => Err(mismatch(table, spec, op, "one value")),
        (_, Literal::One(value)) => single(table, spec, column, op, value),
    }
}

fn single(table: &Table, spec: &Column, column: usize, op: Op, value: &Value) -> Result<Filter, BuildError> {
    if *value == Value::Null {
        return Ok(match op {
            Op::Is | Op::IsNot => Filter::Compare { column, op, value: Value::Null },
            _ => FALSE,
        });
    }
    if spec.ty == ColumnType::Json {
        return Err(mismatch(table, spec, op, "IS null or IS NOT null: JSON cannot be compared"));
    }
    let compare = |op: Op, value: Value| Filter::Compare { column, op, value };
    let same_class = same_class(spec.ty, value);
    Ok(match op {
        Op::Eq | Op::Is => exact(spec.ty, value).map_or(FALSE, |v| compare(Op::Eq, v)),
        Op::Ne => exact(spec.ty, value).map_or_else(|| not_null(column), |v| compare(Op::Ne, v)),
        Op::IsNot => exact(spec.ty, value).map_or(TRUE, |v| compare(Op::IsNot, v)),
        Op::Lt | Op::Gt | Op::Le | Op::Ge if same_class => {
            compare(op, exact(spec.ty, value).unwrap_or_else(|| value.clone()))
        }
        Op::Lt | Op::Gt | Op::Le | Op::Ge => return Err(mismatch(table, spec, op, type_name(spec.ty))),
        Op::Like | Op::NotLike | Op::ILike | Op::NotILike => {
            let (ColumnType::Str, Value::Str(pattern)) = (spec.ty, value) else {
                return Err(mismatch(table, spec, op, "a string column and a string pattern"));
            };
            match op {
                Op::Like if is_literal(pattern) => compare(Op::Eq, value.clone()),
                Op::NotLike if is_literal(pattern) => compare(Op::Ne, value.clone()),
                _ => {
                    let pattern = Arc::new(Pattern::new(pattern, matches!(op, Op::ILike | Op::NotILike)));
                    Filter::Like { column, negated: matches!(op, Op::NotLike | Op::NotILike), pattern }
                }
            }
        }
        Op::In | Op::NotIn => return Err(mismatch(table, spec, op, "a list of values")),
    })
}

fn membership(
    table: &Table,
    spec: &Column,
    column: usize,
    negated: bool,
    values: &[Value],
) -> Result<Filter, BuildError> {
    if values.len() > MAX_IN_VALUES {
        return Err(BuildError::TooLarge { what: "values in one IN list", limit: MAX_IN_VALUES });
    }
    if spec.ty == ColumnType::Json {
        let op = if negated { Op::NotIn } else { Op::In };
        return Err(mismatch(table, spec, op, "IS null or IS NOT null: JSON cannot be compared"));
    }
    let mut values: Vec<Value> = values.iter().filter_map(|v| exact(spec.ty, v)).collect();
    values.sort_by(|a, b| a.as_ref().cmp_total(b.as_ref()));
    values.dedup();
    Ok(match (values.len(), negated) {
        (0, false) => FALSE,
        (0, true) => not_null(column),
        (1, _) => {
            let op = if negated { Op::Ne } else { Op::Eq };
            Filter::Compare { column, op, value: values.swap_remove(0) }
        }
        _ => Filter::In { column, negated, values: values.into() },
    })
}

fn not_null(column: usize) -> Filter {
    Filter::Compare { column, op: Op::IsNot, value: Value::Null }
}

/// The literal as the column would hold it; `None` when no cell can equal it.
pub(crate) fn exact(ty: ColumnType, value: &Value) -> Option<Value> {
    cell_as(value.as_ref(), ty).map(|v| v.to_owned())
}

pub(crate) fn same_class(ty: ColumnType, value: &Value) -> bool {
    matches!(
        (ty, value),
        (ColumnType::Bool, Value::Bool(_))
            | (ColumnType::Int | ColumnType::Float, Value::Int(_) | Value::Float(_))
            | (ColumnType::Str, Value::Str(_))
    )
}

pub(crate) fn type_name(ty: ColumnType) -> &'static str {
    match ty {
        ColumnType::Bool => "a boolean",
        ColumnType::Int | ColumnType::Float => "a number",
        ColumnType::Str => "a string",
        ColumnType::Json => "JSON",
        ColumnType::Hidden => "nothing: the column is hidden",
    }
}

fn mismatch(table: &Table, column: &Column, op: Op, wants: &'static str) -> BuildError {
    BuildError::Type { table: table.name.to_string(), column: column.name.to_string(), op: format!("{op:?}"), wants }
}

/// A copy of `filter` in which every EXISTS is true.
pub(crate) fn relax(filter: &Filter) -> Filter {
    match filter {
        Filter::And(parts) => all(parts.iter().map(relax)),
        Filter::Or(parts) => any(parts.iter().map(relax)),
        Filter::Compare { column, op, value } => Filter::Compare { column: *column, op: *op, value: value.clone() },
        Filter::In { column, negated, values } => {
            Filter::In { column: *column, negated: *negated, values: Arc::clone(values) }
        }
        Filter::Like { column, negated, pattern } => {
            Filter::Like { column: *column, negated: *negated, pattern: Arc::clone(pattern) }
        }
        Filter::Exists(_) => TRUE,
    }
}

/// The conjunction: flattened, constants folded, plain comparisons before EXISTS.
pub(crate) fn all(parts: impl IntoIterator<Item = Filter>) -> Filter {
    let mut out = Vec::new();
    for part in parts {
        match part {
            Filter::And(inner) => out.extend(inner),
            part if is_false(&part) => return FALSE,
            part => out.push(part),
        }
    }
    single_or(out, Filter::And)
}

/// The disjunction, likewise.
pub(crate) fn any(parts: impl IntoIterator<Item = Filter>) -> Filter {
    let mut out = Vec::new();
    for part in parts {
        match part {
            Filter::Or(inner) => out.extend(inner),
            part if is_true(&part) => return TRUE,
            part => out.push(part),
        }
    }
    single_or(out, Filter::Or)
}

fn single_or(mut parts: Vec<Filter>, many: fn(Vec<Filter>) -> Filter) -> Filter {
    parts.sort_by_key(has_exists);
    if parts.len() == 1 { parts.swap_remove(0) } else { many(parts) }
}

fn has_exists(filter: &Filter) -> bool {
    match filter {
        Filter::And(parts) | Filter::Or(parts) => parts.iter().any(has_exists),
        Filter::Compare { .. } | Filter::In { .. } | Filter::Like { .. } => false,
        Filter::Exists(_) => true,
    }
}
