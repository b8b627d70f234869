//! Calendar windows: days, weeks, months and years, at a fixed offset from UTC.

use jiff::civil::{Date, Weekday};
use jiff::{Timestamp, ToSpan, tz::TimeZone};
use serde::{Deserialize, Serialize};

use crate::decision::command::Period;
use crate::units::{MILLIS_MAX, Millis};

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

#[cfg(test)]
mod tests {
    use super::*;

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
