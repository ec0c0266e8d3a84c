//! Values as clients have them to the text that Postgres reads for a column's type.
//!
//! What does not fit a type is left to Postgres to refuse, unless it would be taken for something else.

use serde_json::{Number, Value};

/// How values of a type are written. The rest of a type is a matter of its cast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Bool,
    /// Integers, and floating and decimal numbers.
    Number,
    /// Days since 1970 in milliseconds.
    Date,
    /// Milliseconds since midnight.
    Time,
    /// Milliseconds since 1970, microseconds in the fraction.
    Timestamp,
    Json,
    /// Text, enums, uuid, network addresses.
    Text,
    /// Elements and what stands between them.
    Array(Box<Form>, char),
}

const DAY_MS: f64 = 86_400_000.0;
const DAY_US: i128 = 86_400_000_000;
/// Beyond what Postgres can hold.
const TIMESTAMP_MS_MAX: f64 = 1e16;

impl Form {
    /// By the type's object id.
    pub(crate) fn of(type_oid: u32, element: Option<u32>) -> Form {
        if let Some(element) = element {
            // The boxes of geometry are the only ones with another delimiter.
            let delimiter = if element == 603 { ';' } else { ',' };
            return Form::Array(Box::new(Form::of(element, None)), delimiter);
        }
        match type_oid {
            16 => Form::Bool,
            20 | 21 | 23 | 26 | 700 | 701 | 1700 => Form::Number,
            114 | 3802 => Form::Json,
            1082 => Form::Date,
            1083 | 1266 => Form::Time,
            1114 | 1184 => Form::Timestamp,
            _ => Form::Text,
        }
    }

    /// `None` is NULL. The error completes "column x: ".
    pub(crate) fn text(&self, value: &Value) -> Result<Option<String>, String> {
        Ok(Some(match (self, value) {
            (_, Value::Null) => return Ok(None),
            (Form::Json, value) => value.to_string(),
            (Form::Bool, Value::Bool(b)) => b.to_string(),
            (Form::Date, Value::Number(n)) => date(milliseconds(n)?),
            (Form::Timestamp, Value::Number(n)) => timestamp(milliseconds(n)?),
            (Form::Time, Value::Number(n)) => time(milliseconds(n)?)?,
            (Form::Number | Form::Text, Value::Number(n)) => number(n),
            (Form::Text, Value::Bool(b)) => b.to_string(),
            (Form::Array(element, delimiter), Value::Array(values)) => array(element, *delimiter, values)?,
            (Form::Bool, _) => return Err("a boolean is expected".to_owned()),
            // Postgres reads it.
            (_, Value::String(text)) => text.clone(),
            (Form::Number | Form::Date | Form::Time | Form::Timestamp, _) => {
                return Err("a number is expected".to_owned());
            }
            (Form::Text, _) => return Err("text is expected".to_owned()),
            (Form::Array(..), _) => return Err("an array is expected".to_owned()),
        }))
    }
}

/// As JavaScript prints it, as far as Postgres tells the difference: no fraction where there is none.
fn number(n: &Number) -> String {
    match n.as_f64() {
        Some(f) if n.is_f64() && f.fract() == 0.0 && f.abs() < 1e21 => format!("{f:.0}"),
        _ => n.to_string(),
    }
}

fn milliseconds(n: &Number) -> Result<f64, String> {
    n.as_f64().filter(|ms| ms.abs() < TIMESTAMP_MS_MAX).ok_or_else(|| "the date is out of range".to_owned())
}

fn array(element: &Form, delimiter: char, values: &[Value]) -> Result<String, String> {
    let mut text = String::from("{");
    for (n, value) in values.iter().enumerate() {
        if n > 0 {
            text.push(delimiter);
        }
        match value {
            // A list in a list is another dimension, but for JSON, whose values may be lists.
            Value::Array(inner) if *element != Form::Json => text.push_str(&array(element, delimiter, inner)?),
            value => match element.text(value)? {
                None => text.push_str("NULL"),
                Some(written) => {
                    text.push('"');
                    for letter in written.chars() {
                        if matches!(letter, '"' | '\\') {
                            text.push('\\');
                        }
                        text.push(letter);
                    }
                    text.push('"');
                }
            },
        }
    }
    text.push('}');
    Ok(text)
}

/// Microseconds since 1970.
fn microseconds(ms: f64) -> i128 {
    let whole = ms.trunc();
    // Lossless: the range was checked.
    whole as i128 * 1000 + ((ms - whole) * 1000.0).round() as i128
}

fn date(ms: f64) -> String {
    let (year, era) = civil(microseconds(ms).div_euclid(DAY_US));
    format!("{year}{era}")
}

fn timestamp(ms: f64) -> String {
    let us = microseconds(ms);
    let (day, era) = civil(us.div_euclid(DAY_US));
    format!("{day} {}+00{era}", clock(us.rem_euclid(DAY_US)))
}

fn time(ms: f64) -> Result<String, String> {
    if !(0.0..DAY_MS).contains(&ms) {
        return Err("a time of day is expected, in milliseconds since midnight".to_owned());
    }
    // Clients know milliseconds of times.
    Ok(format!("{}+00", clock(ms.floor() as i128 * 1000)))
}

fn clock(us: i128) -> String {
    let (seconds, fraction) = (us / 1_000_000, us % 1_000_000);
    format!("{:02}:{:02}:{:02}.{fraction:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Year, month and day of the proleptic Gregorian calendar, and what stands behind them before our era.
fn civil(days: i128) -> (String, &'static str) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_written_as_postgres_reads_them() {
        let array = |form| Form::Array(Box::new(form), ',');
        for (form, value, text) in [
            (Form::Number, json!(5), Some("5")),
            (Form::Number, json!(5.0), Some("5")),
            (Form::Number, json!(-0.25), Some("-0.25")),
            (Form::Number, json!(9_007_199_254_740_993_i64), Some("9007199254740993")),
            (Form::Number, json!("12"), Some("12")),
            (Form::Text, json!(1.0), Some("1")),
            (Form::Text, json!(true), Some("true")),
            (Form::Text, json!(null), None),
            (Form::Bool, json!(false), Some("false")),
            (Form::Json, json!(true), Some("true")),
            (Form::Json, json!("x"), Some("\"x\"")),
            (Form::Json, json!([1, {"b": null, "a": "\""}]), Some(r#"[1,{"b":null,"a":"\""}]"#)),
            (Form::Json, json!(null), None),
            (Form::Date, json!(0), Some("1970-01-01")),
            (Form::Date, json!(-1), Some("1969-12-31")),
            (Form::Date, json!(1_709_164_800_000_i64), Some("2024-02-29")),
            (Form::Date, json!(-62_167_219_200_001_i64), Some("0002-12-31 BC")),
            (Form::Timestamp, json!(1_732_200_000_000.123), Some("2024-11-21 14:40:00.000123+00")),
            (Form::Timestamp, json!(-0.001), Some("1969-12-31 23:59:59.999999+00")),
            (Form::Timestamp, json!(253_402_300_800_000_i64), Some("10000-01-01 00:00:00.000000+00")),
            (Form::Timestamp, json!("2024-01-01"), Some("2024-01-01")),
            (Form::Time, json!(45_296_789), Some("12:34:56.789000+00")),
            (array(Form::Number), json!([1, null, 2.5]), Some(r#"{"1",NULL,"2.5"}"#)),
            (array(Form::Text), json!(["a\"b\\c", "", "NULL"]), Some(r#"{"a\"b\\c","","NULL"}"#)),
            (array(Form::Number), json!([[1], [2]]), Some(r#"{{"1"},{"2"}}"#)),
            (array(Form::Json), json!([[1], {"a": "b"}]), Some(r#"{"[1]","{\"a\":\"b\"}"}"#)),
            (array(Form::Timestamp), json!([0]), Some(r#"{"1970-01-01 00:00:00.000000+00"}"#)),
            (array(Form::Text), json!([]), Some("{}")),
        ] {
            assert_eq!(form.text(&value), Ok(text.map(str::to_owned)), "{form:?} {value}");
        }
    }

    #[test]
    fn what_would_be_taken_for_something_else_is_refused() {
        for (form, value) in [
            (Form::Bool, json!("true")),
            (Form::Bool, json!(1)),
            (Form::Number, json!(true)),
            (Form::Number, json!([1])),
            (Form::Text, json!({})),
            (Form::Time, json!(-1)),
            (Form::Time, json!(86_400_000)),
            (Form::Timestamp, json!(1e17)),
            (Form::Date, json!(false)),
            (Form::Array(Box::new(Form::Bool), ','), json!(["x"])),
            (Form::Array(Box::new(Form::Text), ','), json!({})),
        ] {
            assert!(form.text(&value).is_err(), "{form:?} {value}");
        }
    }
}
