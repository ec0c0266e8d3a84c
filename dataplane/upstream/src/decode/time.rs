//! Dates and times as numbers: milliseconds since the Unix epoch (microseconds in the fraction), or since midnight.

use crate::pgoutput::POSTGRES_EPOCH_US;
use crate::reader::Malformed;

const DAY_US: i64 = 86_400_000_000;
const DAY_MS: f64 = 86_400_000.0;
const POSTGRES_EPOCH_DAYS: i64 = 10_957;

/// Days since 1970-01-01 in the proleptic Gregorian calendar; year 0 is 1 BC.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

struct Scan<'a>(&'a [u8]);

impl Scan<'_> {
    /// A run of `min` to `max` digits.
    #[inline]
    fn number(&mut self, min: usize, max: usize) -> Option<i64> {
        let mut n = 0_i64;
        let mut count = 0;
        while count < max && self.0.get(count).is_some_and(u8::is_ascii_digit) {
            n = n * 10 + i64::from(self.0[count] - b'0');
            count += 1;
        }
        if count < min {
            return None;
        }
        self.0 = &self.0[count..];
        Some(n)
    }

    #[inline]
    fn take(&mut self, b: u8) -> Option<()> {
        let (&first, rest) = self.0.split_first()?;
        if first != b {
            return None;
        }
        self.0 = rest;
        Some(())
    }

    /// `YYYY-MM-DD`, the year with four or more digits.
    fn date(&mut self) -> Option<(i64, i64, i64)> {
        let year = self.number(4, 7)?;
        self.take(b'-')?;
        let month = self.number(2, 2).filter(|m| (1..=12).contains(m))?;
        self.take(b'-')?;
        let day = self.number(2, 2).filter(|d| (1..=31).contains(d))?;
        Some((year, month, day))
    }

    /// `HH:MM:SS[.ffffff]` in microseconds; 24:00:00 and a leap second are legal.
    fn time(&mut self) -> Option<i64> {
        let hours = self.number(2, 2).filter(|&h| h <= 24)?;
        self.take(b':')?;
        let minutes = self.number(2, 2).filter(|&m| m <= 59)?;
        self.take(b':')?;
        let seconds = self.number(2, 2).filter(|&s| s <= 60)?;
        let mut fraction = 0;
        if self.take(b'.').is_some() {
            let before = self.0.len();
            fraction = self.number(1, 6)?;
            for _ in before - self.0.len()..6 {
                fraction *= 10;
            }
        }
        Some(((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + fraction)
    }

    /// `+HH[:MM[:SS]]` east of UTC, in microseconds.
    fn offset(&mut self) -> Option<i64> {
        let sign = if self.take(b'+').is_some() {
            1
        } else {
            self.take(b'-')?;
            -1
        };
        let mut seconds = self.number(2, 2)? * 3600;
        if self.take(b':').is_some() {
            seconds += self.number(2, 2)? * 60;
            if self.take(b':').is_some() {
                seconds += self.number(2, 2)?;
            }
        }
        Some(sign * seconds * 1_000_000)
    }

    fn days(&mut self, (year, month, day): (i64, i64, i64)) -> i64 {
        let year = if self.0.strip_prefix(b" BC").is_some() {
            self.0 = &self.0[3..];
            1 - year
        } else {
            year
        };
        days_from_civil(year, month, day)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

fn infinity(bytes: &[u8]) -> Option<f64> {
    match bytes {
        b"infinity" => Some(f64::INFINITY),
        b"-infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

fn epoch_ms(us: i128) -> f64 {
    us as f64 / 1000.0
}

pub(crate) fn date_text(bytes: &[u8]) -> Result<f64, Malformed> {
    let mut s = Scan(bytes);
    let parse = |s: &mut Scan<'_>| {
        let date = s.date()?;
        let days = s.days(date);
        s.end()?;
        Some(days as f64 * DAY_MS)
    };
    parse(&mut s).or_else(|| infinity(bytes)).ok_or_else(|| Malformed::new("a date is not a date"))
}

pub(crate) fn timestamp_text(bytes: &[u8]) -> Result<f64, Malformed> {
    let mut s = Scan(bytes);
    let parse = |s: &mut Scan<'_>| {
        let date = s.date()?;
        s.take(b' ')?;
        let time = s.time()?;
        let offset = if matches!(s.0.first(), Some(b'+' | b'-')) { s.offset()? } else { 0 };
        let days = s.days(date);
        s.end()?;
        Some(epoch_ms(i128::from(days) * i128::from(DAY_US) + i128::from(time - offset)))
    };
    parse(&mut s).or_else(|| infinity(bytes)).ok_or_else(|| Malformed::new("a timestamp is not a timestamp"))
}

pub(crate) fn time_text(bytes: &[u8]) -> Result<f64, Malformed> {
    let mut s = Scan(bytes);
    let time = s.time().filter(|_| s.end().is_some()).ok_or_else(|| Malformed::new("a time is not a time"))?;
    Ok(midnight_ms(time))
}

pub(crate) fn timetz_text(bytes: &[u8]) -> Result<f64, Malformed> {
    let mut s = Scan(bytes);
    let parse = |s: &mut Scan<'_>| {
        let time = s.time()?;
        let offset = s.offset()?;
        s.end()?;
        Some(utc_ms(time - offset))
    };
    parse(&mut s).ok_or_else(|| Malformed::new("a time with time zone is not one"))
}

/// Whole milliseconds since midnight.
fn midnight_ms(us: i64) -> f64 {
    us.div_euclid(1000) as f64
}

fn utc_ms(us: i64) -> f64 {
    midnight_ms(us.rem_euclid(DAY_US))
}

pub(crate) fn date_binary(days: i32) -> f64 {
    match days {
        i32::MAX => f64::INFINITY,
        i32::MIN => f64::NEG_INFINITY,
        days => (i64::from(days) + POSTGRES_EPOCH_DAYS) as f64 * DAY_MS,
    }
}

pub(crate) fn timestamp_binary(us: i64) -> f64 {
    match us {
        i64::MAX => f64::INFINITY,
        i64::MIN => f64::NEG_INFINITY,
        us => epoch_ms(i128::from(us) + i128::from(POSTGRES_EPOCH_US)),
    }
}

pub(crate) fn time_binary(us: i64) -> f64 {
    midnight_ms(us)
}

/// `west` is the zone in seconds west of UTC.
pub(crate) fn timetz_binary(us: i64, west: i32) -> f64 {
    utc_ms(us.saturating_add(i64::from(west) * 1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps() {
        for (text, ms) in [
            ("1970-01-01 00:00:00", 0.0),
            ("1970-01-01 00:00:00.000001", 0.001),
            ("1969-12-31 23:59:59.999", -1.0),
            ("1969-12-31 23:59:59.999999", -0.001),
            ("2024-02-29 12:34:56.789+00", 1_709_210_096_789.0),
            ("2024-02-29 12:34:56.789+05:30", 1_709_190_296_789.0),
            ("2024-02-29 12:34:56.789-08", 1_709_238_896_789.0),
            ("1883-11-18 12:00:00-04:56:02", -2_717_651_038_000.0),
            ("10000-01-01 00:00:00", 253_402_300_800_000.0),
            ("294276-12-31 23:59:59.999999", 9_224_318_015_999_999.999_999),
            ("0001-01-01 00:00:00", -62_135_596_800_000.0),
            ("0001-12-31 00:00:00 BC", -62_135_683_200_000.0),
            ("4713-01-01 00:00:00+00 BC", -210_863_520_000_000.0),
            ("infinity", f64::INFINITY),
            ("-infinity", f64::NEG_INFINITY),
        ] {
            assert_eq!(timestamp_text(text.as_bytes()), Ok(ms), "{text}");
        }
        for bad in [
            "",
            "2024-01-01",
            "2024-00-01 00:00:00",
            "2024-01-01 25:00:00",
            "2024-01-01 00:00:00.",
            "2024-01-01 00:00:00+",
            "x",
        ] {
            assert!(timestamp_text(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn dates() {
        for (text, ms) in [
            ("1970-01-01", 0.0),
            ("2000-01-01", 946_684_800_000.0),
            ("1969-12-31", -86_400_000.0),
            ("5874897-12-31", 185_331_706_992_000_000.0),
            ("0044-03-15 BC", -63_517_824_000_000.0),
            ("infinity", f64::INFINITY),
        ] {
            assert_eq!(date_text(text.as_bytes()), Ok(ms), "{text}");
        }
        assert_eq!(date_binary(0), 946_684_800_000.0);
        assert_eq!(date_binary(i32::MIN), f64::NEG_INFINITY);
    }

    #[test]
    fn times() {
        for (text, ms) in [
            ("00:00:00", 0.0),
            ("12:34:56.789999", 45_296_789.0),
            ("24:00:00", 86_400_000.0),
            ("23:59:60", 86_400_000.0),
        ] {
            assert_eq!(time_text(text.as_bytes()), Ok(ms), "{text}");
        }
        for (text, ms) in [
            ("12:00:00+00", 43_200_000.0),
            ("00:30:00+01", 84_600_000.0),
            ("23:30:00-01:30", 3_600_000.0),
            ("24:00:00+00", 0.0),
            ("12:00:00+05:30:15", 23_385_000.0),
        ] {
            assert_eq!(timetz_text(text.as_bytes()), Ok(ms), "{text}");
        }
        assert_eq!(timetz_binary(30 * 60 * 1_000_000, -3600), 84_600_000.0);
        assert!(timetz_text(b"12:00:00").is_err());
    }

    #[test]
    fn binary_and_text_agree_at_the_edges() {
        assert_eq!(Ok(timestamp_binary(-POSTGRES_EPOCH_US - 1)), timestamp_text(b"1969-12-31 23:59:59.999999"));
        assert_eq!(Ok(timestamp_binary(9_223_371_331_199_999_999)), timestamp_text(b"294276-12-31 23:59:59.999999"));
    }
}
