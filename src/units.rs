//! Quantities that carry their unit: points in time, lengths of time, credits and multipliers.
//!
//! All of them are integers. Arithmetic that could leave the range is checked by the caller's
//! choice of method; nothing here wraps. Human-readable formats (JSON, TOML) show decimal strings
//! and `5h`; binary formats hold the integer.

use std::fmt;
use std::str::FromStr;

/// A point in time: milliseconds since the Unix epoch, as agreed by the log. Shown as RFC 3339.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

/// A length of time in milliseconds. Shown as `1h30m`, and read from the same form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub u64);

/// An amount of credits in millionths of a credit. Shown as a decimal string such as `12.5`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credits(pub i64);

/// A multiplier in parts per million. Shown as a decimal string: `2.2` is 2,200,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ppm(pub u64);

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuantityError {
    #[error("expected a decimal number such as 12.5, with at most six digits after the point")]
    Decimal,
    #[error("expected a length of time such as 500ms, 30s, 5h, 7d or 1h30m")]
    Span,
    #[error("expected a time such as 2027-11-22T00:00:00Z")]
    Time,
    #[error(
        "expected a time with its offset from UTC, such as 2027-11-22T00:00:00Z or 2027-11-22T02:00:00+02:00"
    )]
    TimeWithoutOffset,
    #[error("expected a time from 1970-01-01T00:00:00Z to {MILLIS_MAX}")]
    TimeOutOfRange,
    #[error("the number is too large")]
    TooLarge,
}

/// The last instant that can be written as RFC 3339 with four digits of year: 9999-12-30T22:00:00Z.
pub const MILLIS_MAX: Millis = Millis(253_402_207_200_000);

impl Millis {
    /// The instant `span` later, or the last one that exists.
    pub fn saturating_add(self, span: Span) -> Millis {
        Millis(self.0.saturating_add(span.0).min(MILLIS_MAX.0.max(self.0)))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Millis) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl Span {
    pub const SECOND: Span = Span(1_000);
    pub const MINUTE: Span = Span(60_000);
    pub const HOUR: Span = Span(3_600_000);
    pub const DAY: Span = Span(86_400_000);

    /// Whole seconds, rounded up: a wait told in seconds must never end before the truth.
    pub fn as_secs_ceil(self) -> u64 {
        self.0.div_ceil(1_000)
    }
}

/// How many millionths make one.
pub const MICROS: i64 = 1_000_000;

impl Credits {
    pub const ZERO: Credits = Credits(0);
    pub const ONE: Credits = Credits(MICROS);
    pub const MAX: Credits = Credits(i64::MAX);

    /// With its unit, for people: `1 credit`, `12.5 credits`.
    pub fn in_words(self) -> String {
        if self == Credits::ONE { "1 credit".to_owned() } else { format!("{self} credits") }
    }

    pub fn checked_add(self, other: Credits) -> Option<Credits> {
        self.0.checked_add(other.0).map(Credits)
    }

    pub fn checked_sub(self, other: Credits) -> Option<Credits> {
        self.0.checked_sub(other.0).map(Credits)
    }

    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl Ppm {
    pub const ONE: Ppm = Ppm(1_000_000);
}

// --- text forms ---------------------------------------------------------------------------------

/// Reads a non-negative or negative decimal with at most six fractional digits as millionths.
fn parse_micros(text: &str) -> Result<i64, ParseQuantityError> {
    use ParseQuantityError::{Decimal, TooLarge};
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) || fraction.len() > 6 {
        return Err(Decimal);
    }
    let whole: i64 = whole.parse().map_err(|_| TooLarge)?;
    let fraction: i64 = format!("{fraction:0<6}").parse().map_err(|_| Decimal)?;
    let micros = whole.checked_mul(MICROS).and_then(|w| w.checked_add(fraction)).ok_or(TooLarge)?;
    Ok(if negative { -micros } else { micros })
}

/// Writes millionths as the shortest exact decimal.
fn write_micros(f: &mut fmt::Formatter<'_>, negative: bool, micros: u64) -> fmt::Result {
    let (whole, fraction) = (micros / MICROS as u64, micros % MICROS as u64);
    let sign = if negative { "-" } else { "" };
    if fraction == 0 {
        return write!(f, "{sign}{whole}");
    }
    let digits = format!("{fraction:06}");
    write!(f, "{sign}{whole}.{}", digits.trim_end_matches('0'))
}

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_micros(f, self.0 < 0, self.0.unsigned_abs())
    }
}

impl FromStr for Credits {
    type Err = ParseQuantityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_micros(text).map(Credits)
    }
}

impl fmt::Display for Ppm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_micros(f, false, self.0)
    }
}

impl FromStr for Ppm {
    type Err = ParseQuantityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let micros = parse_micros(text)?;
        u64::try_from(micros).map(Ppm).map_err(|_| ParseQuantityError::Decimal)
    }
}

const SPAN_UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (name, millis) in SPAN_UNITS {
            // Weeks are read but not written: `14d` says more to most people than `2w`.
            if name != "w" && rest >= millis {
                write!(f, "{}{name}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

impl FromStr for Span {
    type Err = ParseQuantityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use ParseQuantityError::{Span as Form, TooLarge};
        if text.is_empty() {
            return Err(Form);
        }
        let mut rest = text;
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(Form)?;
            let unit_end = rest[digits..]
                .find(|c: char| c.is_ascii_digit())
                .map_or(rest.len(), |offset| digits + offset);
            let unit = &rest[digits..unit_end];
            let (_, millis) = SPAN_UNITS.into_iter().find(|(name, _)| *name == unit).ok_or(Form)?;
            if digits == 0 {
                return Err(Form);
            }
            let count: u64 = rest[..digits].parse().map_err(|_| TooLarge)?;
            total = count.checked_mul(millis).and_then(|t| total.checked_add(t)).ok_or(TooLarge)?;
            rest = &rest[unit_end..];
        }
        Ok(Span(total))
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clamped = self.0.min(MILLIS_MAX.0) as i64;
        match jiff::Timestamp::from_millisecond(clamped) {
            Ok(timestamp) => write!(f, "{timestamp}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

impl FromStr for Millis {
    type Err = ParseQuantityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let timestamp: jiff::Timestamp = text.parse().map_err(|_| why_no_instant(text))?;
        match u64::try_from(timestamp.as_millisecond()) {
            Ok(millis) if millis <= MILLIS_MAX.0 => Ok(Millis(millis)),
            _ => Err(ParseQuantityError::TimeOutOfRange),
        }
    }
}

/// What a text lacks that is no instant.
fn why_no_instant(text: &str) -> ParseQuantityError {
    let year = text.strip_prefix(['+', '-']).unwrap_or(text);
    let year = year.split('-').next().unwrap_or_default();
    if year.len() > 4 && year.len() < text.len() && year.bytes().all(|byte| byte.is_ascii_digit()) {
        return ParseQuantityError::TimeOutOfRange;
    }
    match text.parse::<jiff::civil::DateTime>() {
        Ok(_) => ParseQuantityError::TimeWithoutOffset,
        // What is within the years of four digits by the clock can be beyond them in UTC.
        Err(_) if text.starts_with("9999-12-3") => ParseQuantityError::TimeOutOfRange,
        Err(_) => ParseQuantityError::Time,
    }
}

/// Text for people, the integer for machines: serde for the quantities above.
macro_rules! serde_as_text_or_integer {
    ($($name:ident($integer:ty)),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <$integer as serde::Deserialize>::deserialize(deserializer).map($name)
                }
            }
        }
    )*};
}
pub(crate) use serde_as_text_or_integer;
serde_as_text_or_integer!(Millis(u64), Span(u64), Credits(i64), Ppm(u64));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credits_read_and_write_the_shortest_exact_decimal() {
        for (text, micros) in [("0", 0), ("12", 12_000_000), ("0.5", 500_000), ("-3.000001", -3_000_001)] {
            assert_eq!(text.parse(), Ok(Credits(micros)));
            assert_eq!(Credits(micros).to_string(), text);
        }
        assert_eq!("7.10".parse(), Ok(Credits(7_100_000)));
        assert_eq!(Credits(i64::MIN).to_string(), "-9223372036854.775808");
    }

    #[test]
    fn credits_are_told_in_words() {
        for (text, words) in
            [("0", "0 credits"), ("1", "1 credit"), ("1.5", "1.5 credits"), ("-1", "-1 credits")]
        {
            assert_eq!(text.parse::<Credits>().map(Credits::in_words), Ok(words.to_owned()));
        }
    }

    #[test]
    fn credits_refuse_what_they_cannot_hold_exactly() {
        for text in ["", ".", "1.", ".5", "1e3", "+1", "1.0000001", " 1", "0x1", "NaN", "--1"] {
            assert_eq!(text.parse::<Credits>(), Err(ParseQuantityError::Decimal), "{text:?}");
        }
        assert_eq!("9223372036855".parse::<Credits>(), Err(ParseQuantityError::TooLarge));
    }

    #[test]
    fn spans_read_what_they_write() {
        for (text, millis) in
            [("0s", 0), ("500ms", 500), ("5h", 18_000_000), ("1h30m", 5_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(text.parse(), Ok(Span(millis)));
            assert_eq!(Span(millis).to_string(), text);
        }
        for text in ["", "5", "h", "5 h", "5y", "-5s", "1.5h"] {
            assert_eq!(text.parse::<Span>(), Err(ParseQuantityError::Span), "{text:?}");
        }
        assert_eq!("99999999999999999999h".parse::<Span>(), Err(ParseQuantityError::TooLarge));
    }

    #[test]
    fn instants_read_what_they_write() {
        let text = "2028-02-29T23:59:59.999Z";
        let instant: Millis = text.parse().expect("a leap day");
        assert_eq!(instant.to_string(), text);
        for text in [
            "1969-12-31T23:59:59Z",
            "9999-12-31T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "+12027-11-22T00:00:00Z",
        ] {
            assert_eq!(text.parse::<Millis>(), Err(ParseQuantityError::TimeOutOfRange), "{text}");
        }
        for text in ["2027-11-22T00:00:00", "2027-11-22 00:00", "2027-11-22"] {
            assert_eq!(text.parse::<Millis>(), Err(ParseQuantityError::TimeWithoutOffset), "{text}");
        }
        for text in ["", "now", "tomorrow-morning", "2027-13-01T00:00:00Z"] {
            assert_eq!(text.parse::<Millis>(), Err(ParseQuantityError::Time), "{text}");
        }
        let told = ParseQuantityError::TimeOutOfRange.to_string();
        assert_eq!(told, "expected a time from 1970-01-01T00:00:00Z to 9999-12-30T22:00:00Z");
        assert_eq!(MILLIS_MAX.to_string(), "9999-12-30T22:00:00Z");
        assert_eq!(MILLIS_MAX.saturating_add(Span(u64::MAX)), MILLIS_MAX);
    }
}
