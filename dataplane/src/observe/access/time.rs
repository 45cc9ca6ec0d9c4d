//! Writing moments, in UTC.

use std::{io::Write as _, time::Duration};

use culvert_model::TimePart;

/// Writes a moment, given as the time since 1970.
pub(crate) fn write(moment: Duration, format: &[TimePart], out: &mut Vec<u8>) {
    let seconds = moment.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let weekday = ((days + 4) % 7) as usize;
    for part in format {
        // Writing to a vector cannot fail.
        let _ = match part {
            TimePart::Default => {
                let millis = moment.subsec_millis();
                write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
            }
            TimePart::Day(true) => write!(out, "{day:02}"),
            TimePart::Day(false) => write!(out, "{day:2}"),
            TimePart::DayOfYear => write!(out, "{:03}", day_of_year(days, year)),
            TimePart::Fraction(digits) => {
                let divisor = 10_u32.pow(u32::from(9 - (*digits).min(9)));
                write!(out, "{:0width$}", moment.subsec_nanos() / divisor, width = usize::from(*digits))
            }
            TimePart::Hour => write!(out, "{hour:02}"),
            TimePart::Hour12 => write!(out, "{:02}", (hour + 11) % 12 + 1),
            TimePart::HalfDay => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            TimePart::Minute => write!(out, "{minute:02}"),
            TimePart::Month => write!(out, "{month:02}"),
            TimePart::MonthName(long) => write!(out, "{}", name(MONTHS[month as usize - 1], *long)),
            TimePart::Second => write!(out, "{second:02}"),
            TimePart::Timestamp => write!(out, "{seconds}"),
            TimePart::Text(text) => write!(out, "{text}"),
            TimePart::Weekday(monday) => {
                write!(out, "{}", if *monday && weekday == 0 { 7 } else { weekday })
            }
            TimePart::WeekdayName(long) => write!(out, "{}", name(WEEKDAYS[weekday], *long)),
            TimePart::Year => write!(out, "{year:04}"),
            TimePart::YearOfCentury => write!(out, "{:02}", year % 100),
        };
    }
}

fn name(full: &'static str, long: bool) -> &'static str {
    if long { full } else { &full[..3] }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// 1 to 366.
fn day_of_year(days: u64, year: u64) -> u64 {
    // 1 January of the year, counted from 1970-01-01.
    let before = year - 1;
    let first = before * 365 + before / 4 - before / 100 + before / 400 - 719_162;
    days - first + 1
}

/// Year, month and day of a day counted from 1970-01-01 in the proleptic Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, so that the leap day is the last of its year; an era is 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(moment: Duration, format: &[TimePart]) -> String {
        let mut out = Vec::new();
        write(moment, format, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(written(Duration::from_secs(seconds), &[TimePart::Default]), expected);
        }
    }

    #[test]
    fn every_conversion() {
        // Saturday, 21 November 2026, 13:01:23.
        let moment = Duration::new(1_795_266_083, 861_042_007);
        for (part, expected) in [
            (TimePart::Day(true), "21"),
            (TimePart::Day(false), "21"),
            (TimePart::DayOfYear, "325"),
            (TimePart::Fraction(1), "8"),
            (TimePart::Fraction(3), "861"),
            (TimePart::Fraction(6), "861042"),
            (TimePart::Fraction(9), "861042007"),
            (TimePart::Hour, "13"),
            (TimePart::Hour12, "01"),
            (TimePart::HalfDay, "PM"),
            (TimePart::Minute, "01"),
            (TimePart::Month, "11"),
            (TimePart::MonthName(false), "Nov"),
            (TimePart::MonthName(true), "November"),
            (TimePart::Second, "23"),
            (TimePart::Timestamp, "1795266083"),
            (TimePart::Weekday(true), "6"),
            (TimePart::Weekday(false), "6"),
            (TimePart::WeekdayName(true), "Saturday"),
            (TimePart::Year, "2026"),
            (TimePart::YearOfCentury, "26"),
        ] {
            assert_eq!(written(moment, std::slice::from_ref(&part)), expected, "{part:?}");
        }
        assert_eq!(written(Duration::from_secs(951_782_400), &[TimePart::DayOfYear]), "060");
        assert_eq!(written(Duration::ZERO, &[TimePart::Hour12, TimePart::HalfDay]), "12AM");
    }
}
