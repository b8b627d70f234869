//! Quantities as text, written digit by digit into a buffer on the stack.
//!
//! An answer holds dozens of amounts and times, a batch thousands: going through the formatting
//! machinery and a calendar library for each costs more than all else the edge does with an answer.
//! The text is exactly that of `Display`, and the tests hold the two together.

use crate::edge::wire::json::WriteJson;
use crate::units::{Credits, MICROS, MILLIS_MAX, Millis, Span};

/// The longest text: a span of all units, each with a number of its own.
const TEXT_BYTES_MAX: usize = 48;

struct Buffer {
    bytes: [u8; TEXT_BYTES_MAX],
    len: usize,
}

impl Buffer {
    fn new() -> Buffer {
        Buffer { bytes: [0; TEXT_BYTES_MAX], len: 0 }
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// The number with as many digits as it has.
    fn push_number(&mut self, mut number: u64) {
        let mut digits = [0; 20];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.push_bytes(&digits[start..]);
    }

    /// The number with exactly `width` digits.
    fn push_padded(&mut self, number: u64, width: usize) {
        let mut rest = number;
        for place in (self.len..self.len + width).rev() {
            self.bytes[place] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.len += width;
    }

    /// A point and the fraction without the zeros at its end; nothing when it is zero.
    fn push_fraction(&mut self, fraction: u64, width: usize) {
        if fraction == 0 {
            return;
        }
        self.push(b'.');
        self.push_padded(fraction, width);
        while self.bytes[self.len - 1] == b'0' {
            self.len -= 1;
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn push_whole(buffer: &mut Buffer, number: u64) {
    buffer.push_number(number);
}

fn push_credits(buffer: &mut Buffer, credits: Credits) {
    if credits.0 < 0 {
        buffer.push(b'-');
    }
    let micros = credits.0.unsigned_abs();
    buffer.push_number(micros / MICROS as u64);
    buffer.push_fraction(micros % MICROS as u64, 6);
}

/// RFC 3339 in UTC. The date is found by counting years from March on, so that a leap day comes
/// last: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn push_time(buffer: &mut Buffer, at: Millis) {
    const DAYS_FROM_0000_03_01_TO_1970: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let millis = at.0.min(MILLIS_MAX.0);
    let (days, in_day) = (millis / 86_400_000 + DAYS_FROM_0000_03_01_TO_1970, millis % 86_400_000);
    let (era, day_of_era) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_from_march + 2) / 5 + 1;
    let month = if months_from_march < 10 { months_from_march + 3 } else { months_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    buffer.push_padded(year, 4);
    for (before, number) in [
        (b'-', month),
        (b'-', day),
        (b'T', in_day / 3_600_000),
        (b':', in_day / 60_000 % 60),
        (b':', in_day / 1_000 % 60),
    ] {
        buffer.push(before);
        buffer.push_padded(number, 2);
    }
    buffer.push_fraction(in_day % 1_000, 3);
    buffer.push(b'Z');
}

fn push_span(buffer: &mut Buffer, span: Span) {
    const UNITS: [(&[u8], u64); 5] =
        [(b"d", 86_400_000), (b"h", 3_600_000), (b"m", 60_000), (b"s", 1_000), (b"ms", 1)];
    let mut rest = span.0;
    if rest == 0 {
        buffer.push_bytes(b"0s");
    }
    for (name, millis) in UNITS {
        if rest >= millis {
            buffer.push_number(rest / millis);
            buffer.push_bytes(name);
            rest %= millis;
        }
    }
}

/// A quantity that is written as its text.
#[derive(Clone, Copy)]
pub(crate) struct AsText<Q>(pub(crate) Q);

macro_rules! as_text {
    ($($name:ident($push:ident)),*) => {$(
        impl WriteJson for AsText<$name> {
            fn write(&self, out: &mut Vec<u8>) {
                let mut buffer = Buffer::new();
                buffer.push(b'"');
                $push(&mut buffer, self.0);
                buffer.push(b'"');
                out.extend_from_slice(buffer.as_bytes());
            }
        }
    )*};
}
as_text!(Credits(push_credits), Millis(push_time), Span(push_span), u64(push_whole));

macro_rules! as_number {
    ($($name:ident),*) => {$(
        impl WriteJson for $name {
            fn write(&self, out: &mut Vec<u8>) {
                let mut buffer = Buffer::new();
                buffer.push_number(u64::from(*self));
                out.extend_from_slice(buffer.as_bytes());
            }
        }
    )*};
}
as_number!(u8, u16, u32, u64);

#[cfg(test)]
mod tests {
    use std::fmt::Display;

    use super::*;

    fn check<Q: Copy + Display>(quantity: Q)
    where
        AsText<Q>: WriteJson,
    {
        let mut out = Vec::new();
        AsText(quantity).write(&mut out);
        assert_eq!(String::from_utf8(out).expect("text"), format!("\"{quantity}\""));
    }

    /// Numbers of every length, round and not.
    fn numbers() -> impl Iterator<Item = u64> {
        let powers = (0..20).map(|exponent| 10_u64.pow(exponent));
        powers.flat_map(|power| [power - 1, power, power + 1, power / 2 * 3]).chain([
            0,
            u64::MAX,
            i64::MAX as u64,
        ])
    }

    #[test]
    fn credits_and_spans_are_written_as_they_are_displayed() {
        for number in numbers() {
            check(number);
            check(Span(number));
            let micros = i64::try_from(number).unwrap_or(i64::MAX);
            check(Credits(micros));
            check(Credits(-micros));
        }
        check(Credits(i64::MIN));
    }

    #[test]
    fn times_are_written_as_they_are_displayed() {
        for number in numbers() {
            check(Millis(number));
        }
        // Every day over more than one cycle of leap years, at a time of day that differs each day.
        for day in 0..170_000_u64 {
            check(Millis(day * 86_400_000 + day * 7_919 % 86_400_000));
        }
        for millis in 0..2_000 {
            check(Millis(1_709_251_199_000 + millis));
        }
    }
}
