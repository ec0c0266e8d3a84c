//! The meaning of a [`Filter`]. Storage must agree with it on every row.
//!
//! Null makes every comparison false except `IS` and `IS NOT`, for which null is an ordinary value.

use std::cmp::Ordering;

use rows::{Row, Value, ValueRef};

use crate::filter::{Exists, Filter};
use crate::like::Pattern;
use crate::query::Op;

/// Whether `row` passes; `exists` answers whether the children of an EXISTS are there (negation is applied here). Filters are
/// built with their EXISTS last, so that plain comparisons decide first.
pub fn matches<E>(
    filter: &Filter,
    row: &Row,
    exists: &mut dyn FnMut(&Exists, &Row) -> Result<bool, E>,
) -> Result<bool, E> {
    match filter {
        Filter::And(all) => {
            for part in all {
                if !matches(part, row, exists)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Filter::Or(any) => {
            for part in any {
                if matches(part, row, exists)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Filter::Compare { column, op, value } => Ok(compare(row.get(*column), *op, value)),
        Filter::In { column, negated, values } => Ok(within_ascending(row.get(*column), *negated, values)),
        Filter::Like { column, negated, pattern } => Ok(like(row.get(*column), *negated, pattern)),
        Filter::Exists(condition) => Ok(exists(condition, row)? != condition.negated),
    }
}

/// Whether `row` could pass if every EXISTS condition were true.
#[must_use]
pub fn may_match(filter: &Filter, row: &Row) -> bool {
    match filter {
        Filter::And(all) => all.iter().all(|part| may_match(part, row)),
        Filter::Or(any) => any.iter().any(|part| may_match(part, row)),
        Filter::Compare { column, op, value } => compare(row.get(*column), *op, value),
        Filter::In { column, negated, values } => within_ascending(row.get(*column), *negated, values),
        Filter::Like { column, negated, pattern } => like(row.get(*column), *negated, pattern),
        Filter::Exists(_) => true,
    }
}

/// One comparison of a cell with a literal of its class.
#[must_use]
pub fn compare(cell: ValueRef<'_>, op: Op, value: &Value) -> bool {
    let value = value.as_ref();
    match op {
        Op::Is => return cell.cmp_total(value) == Ordering::Equal,
        Op::IsNot => return cell.cmp_total(value) != Ordering::Equal,
        _ if cell.is_null() || value.is_null() => return false,
        _ => {}
    }
    let order = || cell.cmp_total(value);
    match op {
        Op::Eq => order() == Ordering::Equal,
        Op::Ne => order() != Ordering::Equal,
        Op::Lt => order() == Ordering::Less,
        Op::Gt => order() == Ordering::Greater,
        Op::Le => order() != Ordering::Greater,
        Op::Ge => order() != Ordering::Less,
        // Built as filters of their own; `IS` was answered above.
        Op::Like | Op::NotLike | Op::ILike | Op::NotILike | Op::In | Op::NotIn | Op::Is | Op::IsNot => false,
    }
}

fn like(cell: ValueRef<'_>, negated: bool, pattern: &Pattern) -> bool {
    matches!(cell, ValueRef::Str(text) if pattern.matches(text) != negated)
}

/// `IN` and `NOT IN`, for values in any order.
#[must_use]
pub fn within(cell: ValueRef<'_>, negated: bool, values: &[Value]) -> bool {
    !cell.is_null() && values.iter().any(|v| v.as_ref().eq_join(cell)) != negated
}

fn within_ascending(cell: ValueRef<'_>, negated: bool, values: &[Value]) -> bool {
    !cell.is_null() && values.binary_search_by(|v| v.as_ref().cmp_total(cell)).is_ok() != negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_is_and_is_not_see_nulls() {
        use Op::*;
        let s = |s: &str| Value::Str(s.into());
        for (cell, op, value, expected) in [
            (Value::Null, Is, Value::Null, true),
            (Value::Null, IsNot, Value::Null, false),
            (Value::Null, Is, s("x"), false),
            (Value::Null, IsNot, s("x"), true),
            (s("x"), Is, Value::Null, false),
            (s("x"), IsNot, Value::Null, true),
            (Value::Null, Eq, s("x"), false),
            (Value::Null, Ne, s("x"), false),
            (s("x"), Eq, Value::Null, false),
            (s("x"), Ne, Value::Null, false),
            (Value::Null, Lt, Value::Int(1), false),
            (Value::Null, Ge, Value::Int(1), false),
            (Value::Int(3), Eq, Value::Float(3.0), true),
            (Value::Int(3), Lt, Value::Float(3.5), true),
            (Value::Bool(false), Lt, Value::Bool(true), true),
            (s("Z"), Lt, s("a"), true),
            (s("\u{FFFF}"), Lt, s("😀"), true),
        ] {
            assert_eq!(compare(cell.as_ref(), op, &value), expected, "{cell:?} {op:?} {value:?}");
        }
        for (cell, negated, pattern, insensitive, expected) in [
            (Value::Null, false, "%", false, false),
            (Value::Null, true, "x", false, false),
            (Value::Null, true, "x", true, false),
            (s("ab"), true, "a%", false, false),
            (s("AB"), false, "a%", true, true),
            (s("AB"), true, "a%", false, true),
        ] {
            let filter = like(cell.as_ref(), negated, &Pattern::new(pattern, insensitive));
            assert_eq!(filter, expected, "{cell:?} {negated} {pattern}");
        }
        for member in [within, within_ascending] {
            assert!(!member(ValueRef::Null, true, &[]));
            assert!(!member(ValueRef::Null, false, &[]));
            assert!(member(ValueRef::Int(1), true, &[]));
            assert!(member(ValueRef::Int(1), false, &[Value::Int(0), Value::Int(1)]));
            assert!(!member(ValueRef::Int(1), true, &[Value::Int(0), Value::Int(1)]));
        }
        assert!(within(ValueRef::Int(1), false, &[Value::Int(2), Value::Float(1.0), Value::Int(0), Value::Null]));
    }
}
