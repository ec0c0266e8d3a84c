//! Which columns can identify rows for clients: those whose different values are still different as a client receives them.
//!
//! Must not know the catalog: it judges columns, and lists of them. Infinite values and numbers that are none are the replica's to leave out,
//! row by row.

use std::collections::BTreeMap;

use crate::decode::{Kind, Scalar};

/// Decimal digits that every double keeps.
const DIGITS_MAX: i32 = 15;
/// Decimal places within a double's range whatever the digits.
const SCALE_MAX: i32 = 290;
/// Decimal places of a second that whole milliseconds have.
const MILLISECOND: i32 = 3;
const NO_MODIFIER: i32 = -1;

/// The columns of one table whose different values may look the same, with the reason.
#[derive(Debug, Default)]
pub(crate) struct Blurred(BTreeMap<String, &'static str>);

impl Blurred {
    pub(crate) fn note(&mut self, column: &str, kind: Kind, modifier: Option<i32>) {
        if let Some(reason) = blurred(kind, modifier) {
            self.0.insert(column.to_owned(), reason);
        }
    }

    fn among(&self, columns: &[String]) -> Option<(&str, &'static str)> {
        self.0.iter().find(|(column, _)| columns.contains(column)).map(|(column, reason)| (column.as_str(), *reason))
    }

    /// Why these columns cannot identify rows for clients. A change of a row says which one by the replica identity: where that is
    /// blurred, only a key that is part of it finds the right row.
    pub(crate) fn obstacle(&self, columns: &[String], identity: &[String]) -> Option<String> {
        if let Some((column, reason)) = self.among(columns) {
            return Some(format!("different values of column {column} would look the same, for {reason}"));
        }
        let (column, reason) = self.among(identity)?;
        let is_part = columns.iter().all(|c| identity.contains(c));
        (!is_part).then(|| {
            format!(
                "changes name their row by column {column}, where different values would look the same, for {reason}"
            )
        })
    }
}

/// Why values of a column may coincide for a client, with the type that would do; `None` if they never do. `modifier` is
/// `atttypmod`; absent in snapshots of releases that did not record it, whose keys were all taken.
fn blurred(kind: Kind, modifier: Option<i32>) -> Option<&'static str> {
    let modifier = modifier?;
    match kind {
        Kind::Scalar(Scalar::Numeric) => {
            let (digits, scale) = precision(modifier);
            (modifier == NO_MODIFIER || digits > DIGITS_MAX || scale.abs() > SCALE_MAX).then_some(
                "clients hold a numeric as a number of 15 digits; declare it numeric(15) or shorter, bigint or text",
            )
        }
        Kind::Scalar(Scalar::Time) => (modifier == NO_MODIFIER || modifier > MILLISECOND)
            .then_some("clients hold a time as whole milliseconds; declare it time(3)"),
        Kind::Scalar(Scalar::TimeTz) => {
            Some("clients hold a time with time zone as milliseconds in UTC, which drops the zone; use another type")
        }
        _ => None,
    }
}

/// Digits and decimal places of a numeric; the places are a signed number of eleven bits.
fn precision(modifier: i32) -> (i32, i32) {
    let packed = modifier - 4;
    ((packed >> 16) & 0xffff, ((packed & 0x7ff) ^ 1024) - 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_found_by_what_its_changes_carry() {
        let mut columns = Blurred::default();
        columns.note("id", Kind::Scalar(Scalar::Numeric), Some(-1));
        columns.note("code", Kind::Scalar(Scalar::Uuid), Some(-1));
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<String>>();
        for (key, identity, fits) in [
            (&["id"][..], &["id"][..], false),
            (&["code"], &["id"], false),
            (&["code"], &["code"], true),
            (&["code"], &["id", "code"], true),
            (&["other"], &["code"], true),
        ] {
            assert_eq!(columns.obstacle(&names(key), &names(identity)).is_none(), fits, "{key:?} {identity:?}");
        }
    }

    #[test]
    fn only_what_stays_apart_is_a_key() {
        let numeric = |digits: i32, scale: i32| ((digits << 16) | (scale & 0x7ff)) + 4;
        assert_eq!(precision(numeric(20, -3)), (20, -3));
        for (scalar, modifier, fits) in [
            (Scalar::Numeric, -1, false),
            (Scalar::Numeric, numeric(15, 0), true),
            (Scalar::Numeric, numeric(15, 15), true),
            (Scalar::Numeric, numeric(3, -2), true),
            (Scalar::Numeric, numeric(3, 400), false),
            (Scalar::Numeric, numeric(16, 2), false),
            (Scalar::Numeric, numeric(20, 0), false),
            (Scalar::Time, -1, false),
            (Scalar::Time, 3, true),
            (Scalar::Time, 4, false),
            (Scalar::TimeTz, 0, false),
            (Scalar::Timestamp, -1, true),
            (Scalar::Date, -1, true),
            (Scalar::Int8, -1, true),
            (Scalar::Float8, -1, true),
            (Scalar::Text, -1, true),
        ] {
            assert_eq!(blurred(Kind::Scalar(scalar), Some(modifier)).is_none(), fits, "{scalar:?} {modifier}");
        }
        assert_eq!(blurred(Kind::Scalar(Scalar::Numeric), None), None);
    }
}
