//! One cell. Numbers are kept as the database has them (64-bit integer or double) and compared numerically.

use std::cmp::Ordering;

/// A borrowed cell, as read out of a [`crate::Row`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueRef<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'a str),
    /// JSON text, exactly as Postgres printed it.
    Json(&'a str),
}

/// An owned cell: literals of queries, correlation keys, bounds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Box<str>),
    Json(Box<str>),
}

impl Value {
    #[must_use]
    pub fn as_ref(&self) -> ValueRef<'_> {
        match self {
            Value::Null => ValueRef::Null,
            Value::Bool(b) => ValueRef::Bool(*b),
            Value::Int(i) => ValueRef::Int(*i),
            Value::Float(f) => ValueRef::Float(*f),
            Value::Str(s) => ValueRef::Str(s),
            Value::Json(s) => ValueRef::Json(s),
        }
    }
}

impl<'a> ValueRef<'a> {
    #[must_use]
    pub fn to_owned(self) -> Value {
        match self {
            ValueRef::Null => Value::Null,
            ValueRef::Bool(b) => Value::Bool(b),
            ValueRef::Int(i) => Value::Int(i),
            ValueRef::Float(f) => Value::Float(f),
            ValueRef::Str(s) => Value::Str(s.into()),
            ValueRef::Json(s) => Value::Json(s.into()),
        }
    }

    #[must_use]
    pub fn is_null(self) -> bool {
        matches!(self, ValueRef::Null)
    }

    /// Rank of the storage class; only values of one rank are ordered by content.
    fn rank(self) -> u8 {
        match self {
            ValueRef::Null => 0,
            ValueRef::Bool(_) => 1,
            ValueRef::Int(_) | ValueRef::Float(_) => 2,
            ValueRef::Str(_) => 3,
            ValueRef::Json(_) => 4,
        }
    }

    /// Total order: null first, then by content; strings by UTF-8 bytes. Values of different classes order by class,
    /// which the type check of a query makes unreachable for well-formed queries.
    #[must_use]
    pub fn cmp_total(self, other: ValueRef<'_>) -> Ordering {
        match (self, other) {
            (ValueRef::Bool(a), ValueRef::Bool(b)) => a.cmp(&b),
            (ValueRef::Int(a), ValueRef::Int(b)) => a.cmp(&b),
            (ValueRef::Float(a), ValueRef::Float(b)) => cmp_floats(a, b),
            (ValueRef::Int(a), ValueRef::Float(b)) => cmp_int_float(a, b),
            (ValueRef::Float(a), ValueRef::Int(b)) => cmp_int_float(b, a).reverse(),
            (ValueRef::Str(a), ValueRef::Str(b)) | (ValueRef::Json(a), ValueRef::Json(b)) => {
                a.as_bytes().cmp(b.as_bytes())
            }
            (a, b) => a.rank().cmp(&b.rank()),
        }
    }

    /// Equality of two non-null values of one class; null equals nothing (the rule of `=` and of joins).
    #[must_use]
    pub fn eq_join(self, other: ValueRef<'_>) -> bool {
        !self.is_null() && !other.is_null() && self.cmp_total(other) == Ordering::Equal
    }
}

/// NaN sorts below every number and equals itself; -0 equals 0.
fn cmp_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

/// Exact comparison of a 64-bit integer with a double, without rounding the integer.
fn cmp_int_float(a: i64, b: f64) -> Ordering {
    if b.is_nan() {
        return Ordering::Greater;
    }
    // 2^63 as a double; everything at or beyond it is outside i64.
    const TWO_63: f64 = 9_223_372_036_854_775_808.0;
    if b >= TWO_63 {
        return Ordering::Less;
    }
    if b < -TWO_63 {
        return Ordering::Greater;
    }
    let whole = b.trunc();
    // In range by the two checks above, so the conversion is exact.
    match a.cmp(&(whole as i64)) {
        Ordering::Equal => 0.0_f64.partial_cmp(&(b - whole)).unwrap_or(Ordering::Equal),
        unequal => unequal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_numbers_exactly() {
        let big = (1_i64 << 53) + 1;
        assert_eq!(ValueRef::Int(big).cmp_total(ValueRef::Float(9_007_199_254_740_992.0)), Ordering::Greater);
        assert_eq!(ValueRef::Int(3).cmp_total(ValueRef::Float(3.0)), Ordering::Equal);
        assert_eq!(ValueRef::Int(3).cmp_total(ValueRef::Float(3.5)), Ordering::Less);
        assert_eq!(ValueRef::Int(-3).cmp_total(ValueRef::Float(-3.5)), Ordering::Greater);
        assert_eq!(ValueRef::Float(1e300).cmp_total(ValueRef::Int(i64::MAX)), Ordering::Greater);
        assert_eq!(ValueRef::Float(f64::NAN).cmp_total(ValueRef::Float(f64::NAN)), Ordering::Equal);
    }

    #[test]
    fn null_sorts_first_and_joins_nothing() {
        assert_eq!(ValueRef::Null.cmp_total(ValueRef::Int(i64::MIN)), Ordering::Less);
        assert!(!ValueRef::Null.eq_join(ValueRef::Null));
        assert!(ValueRef::Str("a").eq_join(ValueRef::Str("a")));
    }
}
