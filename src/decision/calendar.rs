//! Calendar windows: days, weeks, months and years, at a fixed offset from UTC.

use jiff::civil::{Date, Weekday};
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use serde::{Deserialize, Serialize};

use crate::decision::command::Period;
use crate::units::{MILLIS_MAX, Millis, Span};

/// A way to cut time into calendar periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Calendar {
    pub period: Period,
    /// For months: the day on which one begins, or the last day where a month is shorter.
    pub day: u8,
    /// Minutes by which local midnight is before midnight in UTC.
    pub utc_offset_minutes: i16,
}

impl Calendar {
    /// Plain periods in UTC.
    pub fn utc(period: Period) -> Calendar {
        Calendar { period, day: 1, utc_offset_minutes: 0 }
    }

    /// The window that holds `at`: its first moment, and the first one after it.
    ///
    /// At the end of representable time the last window never ends before [`MILLIS_MAX`].
    pub fn window(self, at: Millis) -> (Millis, Millis) {
        self.civil_window(at).unwrap_or((at, Millis(at.0.saturating_add(1).max(MILLIS_MAX.0))))
    }

    fn civil_window(self, at: Millis) -> Option<(Millis, Millis)> {
        let local = i64::try_from(at.0).ok()?.checked_add(self.offset_millis())?;
        let date = Timestamp::from_millisecond(local).ok()?.to_zoned(TimeZone::UTC).date();
        let (first, next) = match self.period {
            Period::Day => (date, date.tomorrow().ok()?),
            Period::Week => {
                let days_in = date.weekday().since(Weekday::Monday);
                let first = date.checked_sub(i32::from(days_in).days()).ok()?;
                (first, first.checked_add(7.days()).ok()?)
            }
            Period::Month => {
                let this = self.begin_of_month(date);
                if date >= this {
                    (this, self.begin_of_month(date.first_of_month().checked_add(1.month()).ok()?))
                } else {
                    (self.begin_of_month(date.first_of_month().checked_sub(1.month()).ok()?), this)
                }
            }
            Period::Year => {
                let first = date.first_of_year();
                (first, first.checked_add(1.year()).ok()?)
            }
        };
        Some((self.midnight(first)?, self.midnight(next)?))
    }

    fn begin_of_month(self, date: Date) -> Date {
        let day = (self.day as i8).clamp(1, date.days_in_month());
        date.first_of_month().with().day(day).build().unwrap_or_else(|_| date.first_of_month())
    }

    fn midnight(self, date: Date) -> Option<Millis> {
        let local = date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond();
        // The first windows of 1970 may begin before the epoch.
        Some(Millis(u64::try_from(local.checked_sub(self.offset_millis())?).unwrap_or(0)))
    }

    fn offset_millis(self) -> i64 {
        i64::from(self.utc_offset_minutes) * 60_000
    }
}

/// How the periods of a recurring grant follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cycle {
    /// So many times 24 hours.
    Days(u32),
    /// Months of the calendar in UTC that begin on this day, or on the last where a month is shorter.
    CalendarMonth { day: u8 },
    /// Months from an anchor: on its day, or on the last where a month is shorter, at its time of day.
    Anniversary,
}

impl Cycle {
    /// When the period that begins at `begins_at` ends, for an account that counts from `anchor`: later
    /// than it begins, and at most [`MILLIS_MAX`]; nothing at the end of time.
    pub fn end(self, anchor: Millis, begins_at: Millis) -> Option<Millis> {
        let end = match self {
            Cycle::Days(days) => Millis(begins_at.0.saturating_add(u64::from(days) * Span::DAY.0)),
            Cycle::CalendarMonth { day } => {
                Calendar { day, ..Calendar::utc(Period::Month) }.window(begins_at).1
            }
            Cycle::Anniversary => anniversary_after(anchor, begins_at)?,
        };
        (begins_at < end && end <= MILLIS_MAX).then_some(end)
    }
}

/// The first moment after `at` that is whole months from `anchor`.
fn anniversary_after(anchor: Millis, at: Millis) -> Option<Millis> {
    let civil = |at: Millis| {
        let timestamp = Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok()?;
        Some(timestamp.to_zoned(TimeZone::UTC).datetime())
    };
    let (first, now) = (civil(anchor)?, civil(at)?);
    let month = |date: Date| i32::from(date.year()) * 12 + i32::from(date.month());
    let months = month(now.date()) - month(first.date());
    // Counted from the anchor each time: a day that a short month lacks comes back after it.
    (months..=months + 1).find_map(|months| {
        let next = first.checked_add(months.months()).ok()?.to_zoned(TimeZone::UTC).ok()?;
        let next = Millis(u64::try_from(next.timestamp().as_millisecond()).ok()?);
        (next > at).then_some(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(cycle: Cycle, anchor: &str, periods: usize) -> Vec<String> {
        let anchor = anchor.parse().expect("a time");
        let mut at = anchor;
        let next = |_| {
            at = cycle.end(anchor, at).expect("time goes on");
            at.to_string()
        };
        (0..periods).map(next).collect()
    }

    #[test]
    fn anniversaries_come_back_to_their_day_after_short_months() {
        let found = ends(Cycle::Anniversary, "2027-12-31T10:30:00.5Z", 4);
        let expected = ["2028-01-31T10:30:00.5Z", "2028-02-29T10:30:00.5Z", "2028-03-31T10:30:00.5Z"];
        assert_eq!(found[..3], expected);
        assert_eq!(found[3], "2028-04-30T10:30:00.5Z");
        assert_eq!(
            ends(Cycle::Anniversary, "2027-01-31T00:00:00Z", 2),
            ["2027-02-28T00:00:00Z", "2027-03-31T00:00:00Z"]
        );
    }

    #[test]
    fn cycles_move_on_and_stop_at_the_end_of_time() {
        for cycle in [Cycle::Days(1), Cycle::Days(400), Cycle::CalendarMonth { day: 31 }, Cycle::Anniversary]
        {
            for at in [0, 1, 86_400_000, 1_801_439_990_000, MILLIS_MAX.0 - 1, MILLIS_MAX.0, u64::MAX] {
                if let Some(end) = cycle.end(Millis(at), Millis(at)) {
                    assert!(Millis(at) < end && end <= MILLIS_MAX, "{cycle:?} {at} {end:?}");
                } else {
                    assert!(at > MILLIS_MAX.0 - 401 * Span::DAY.0, "{cycle:?} {at}");
                }
            }
        }
    }

    fn window(calendar: Calendar, at: &str) -> (String, String) {
        let (first, next) = calendar.window(at.parse().expect("a time"));
        (first.to_string(), next.to_string())
    }

    #[test]
    fn months_begin_on_their_last_day_where_they_are_shorter() {
        let calendar = Calendar { day: 31, ..Calendar::utc(Period::Month) };
        let cases = [
            ("2027-02-27T23:59:59.999Z", "2027-01-31T00:00:00Z", "2027-02-28T00:00:00Z"),
            ("2027-02-28T00:00:00Z", "2027-02-28T00:00:00Z", "2027-03-31T00:00:00Z"),
            ("2028-02-28T12:00:00Z", "2028-01-31T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("2028-02-29T00:00:00Z", "2028-02-29T00:00:00Z", "2028-03-31T00:00:00Z"),
            ("2027-12-31T00:00:00Z", "2027-12-31T00:00:00Z", "2028-01-31T00:00:00Z"),
        ];
        for (at, first, next) in cases {
            assert_eq!(window(calendar, at), (first.to_owned(), next.to_owned()), "{at}");
        }
    }

    #[test]
    fn offsets_move_midnight() {
        let calendar = Calendar { utc_offset_minutes: 330, ..Calendar::utc(Period::Day) };
        let expected = ("2027-05-01T18:30:00Z".to_owned(), "2027-05-02T18:30:00Z".to_owned());
        assert_eq!(window(calendar, "2027-05-01T18:30:00Z"), expected);
        assert_eq!(window(calendar, "2027-05-02T18:29:59.999Z"), expected);
    }

    #[test]
    fn weeks_begin_on_monday_and_years_in_january() {
        let week = window(Calendar::utc(Period::Week), "2027-01-03T10:00:00Z");
        assert_eq!(week, ("2026-12-28T00:00:00Z".to_owned(), "2027-01-04T00:00:00Z".to_owned()));
        let year = window(Calendar::utc(Period::Year), "2028-12-31T23:59:59.999Z");
        assert_eq!(year, ("2028-01-01T00:00:00Z".to_owned(), "2029-01-01T00:00:00Z".to_owned()));
    }

    #[test]
    fn every_moment_is_in_its_window_to_both_ends_of_time() {
        for period in [Period::Day, Period::Week, Period::Month, Period::Year] {
            for offset in [-840, 0, 840] {
                let calendar = Calendar { period, day: 31, utc_offset_minutes: offset };
                for at in [0, 1, 86_400_000, MILLIS_MAX.0 - 1, MILLIS_MAX.0, u64::MAX / 2, u64::MAX - 1] {
                    let (first, next) = calendar.window(Millis(at));
                    assert!(first.0 <= at && at < next.0, "{calendar:?} {at} {first:?} {next:?}");
                }
            }
        }
    }
}
