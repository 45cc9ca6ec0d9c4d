//! How moments are written: strftime's conversions, and Envoy's `%3f` (measured on 1.40).

use culvert_model::TimePart;

use super::{FormatError, malformed, unsupported};

/// Parses the parameter of `%START_TIME(...)%`.
pub(super) fn parse(format: &str) -> Result<Vec<TimePart>, FormatError> {
    let mut parts = Vec::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            text(&mut parts, &char.to_string());
            continue;
        }
        let Some(conversion) = chars.next() else {
            return malformed(format!("{format:?} ends with a percent sign"));
        };
        let part = match conversion {
            'A' => TimePart::WeekdayName(true),
            'a' => TimePart::WeekdayName(false),
            'B' => TimePart::MonthName(true),
            'b' | 'h' => TimePart::MonthName(false),
            'd' => TimePart::Day(true),
            'e' => TimePart::Day(false),
            'f' => TimePart::Fraction(9),
            digit @ '1'..='9' if chars.as_str().starts_with('f') => {
                chars.next();
                TimePart::Fraction(digit as u8 - b'0')
            }
            'H' => TimePart::Hour,
            'I' => TimePart::Hour12,
            'j' => TimePart::DayOfYear,
            'M' => TimePart::Minute,
            'm' => TimePart::Month,
            'p' => TimePart::HalfDay,
            'S' => TimePart::Second,
            's' => TimePart::Timestamp,
            'u' => TimePart::Weekday(true),
            'w' => TimePart::Weekday(false),
            'Y' => TimePart::Year,
            'y' => TimePart::YearOfCentury,
            composite @ ('D' | 'F' | 'R' | 'T') => {
                parts.extend(parse(match composite {
                    'D' => "%m/%d/%y",
                    'F' => "%Y-%m-%d",
                    'R' => "%H:%M",
                    _ => "%H:%M:%S",
                })?);
                continue;
            }
            literal @ ('%' | 'n' | 't' | 'Z' | 'z') => {
                text(
                    &mut parts,
                    match literal {
                        '%' => "%",
                        'n' => "\n",
                        't' => "\t",
                        'Z' => "UTC",
                        _ => "+0000",
                    },
                );
                continue;
            }
            'E' => {
                // Extended conversions: %E3S, %E3f, %E4Y, %Ez, %ET.
                let rest = chars.as_str();
                let (extended, used): (&[TimePart], usize) = match rest.as_bytes() {
                    [b'4', b'Y', ..] => (&[TimePart::Year], 2),
                    [digit @ b'1'..=b'9', b'f', ..] => (&[TimePart::Fraction(*digit - b'0')], 2),
                    [digit @ b'1'..=b'9', b'S', ..] => {
                        parts.push(TimePart::Second);
                        text(&mut parts, ".");
                        (&[TimePart::Fraction(*digit - b'0')], 2)
                    }
                    [b'T', ..] => {
                        text(&mut parts, "T");
                        (&[], 1)
                    }
                    [b'z', ..] => {
                        text(&mut parts, "+00:00");
                        (&[], 1)
                    }
                    _ => return unsupported(format!("{format:?}: %E{rest} is not a supported conversion")),
                };
                parts.extend_from_slice(extended);
                chars = rest[used..].chars();
                continue;
            }
            other => return unsupported(format!("{format:?}: %{other} is not a supported conversion")),
        };
        parts.push(part);
    }
    Ok(parts)
}

fn text(parts: &mut Vec<TimePart>, more: &str) {
    match parts.last_mut() {
        Some(TimePart::Text(text)) => text.push_str(more),
        _ => parts.push(TimePart::Text(more.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions() {
        let literal = |text: &str| TimePart::Text(text.to_owned());
        for (format, parts) in [
            ("%s.%3f", vec![TimePart::Timestamp, literal("."), TimePart::Fraction(3)]),
            ("%E3S", vec![TimePart::Second, literal("."), TimePart::Fraction(3)]),
            ("a%%%Zb", vec![literal("a%UTCb")]),
            ("%R", vec![TimePart::Hour, literal(":"), TimePart::Minute]),
            ("%E4Y%ET", vec![TimePart::Year, literal("T")]),
        ] {
            assert_eq!(parse(format), Ok(parts), "{format}");
        }
        for bad in ["%", "a%", "%Q", "%E?", "%3x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
