//! `--log-format`: the part of spdlog's pattern syntax that is in use, with Envoy's additions. Times are UTC.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::Record;

/// Envoy's default.
pub const DEFAULT_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

/// A format that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log format flag '%{0}' is not known; known are Y m d H M S T D F e f z t P l L n g s # v j _ %")]
pub struct FormatError(String);

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    pieces: Vec<Piece>,
    escaped: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Component,
    Day,
    File,
    FileShort,
    Hour,
    Level,
    LevelShort,
    Line,
    Literal(String),
    MessageEscaped,
    MessageJson,
    Message,
    Microseconds,
    Milliseconds,
    Minute,
    Month,
    Nanoseconds,
    Offset,
    Process,
    Second,
    Thread,
    Year,
}

impl Format {
    /// Reads a pattern. `escaped` writes line breaks in a message as `\n` (`--log-format-escaped`).
    pub fn parse(pattern: &str, escaped: bool) -> Result<Self, FormatError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                literal.push(c);
                continue;
            }
            match chars.next() {
                Some('%') => literal.push('%'),
                Some(flag) => {
                    if !literal.is_empty() {
                        pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                    }
                    pieces.extend(flag_pieces(flag)?);
                }
                None => return Err(FormatError(String::new())),
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Ok(Self { pieces, escaped })
    }

    /// One line, without the line break at its end.
    pub(super) fn line(&self, record: &Record<'_>, component: &str) -> String {
        self.line_at(record, component, SystemTime::now())
    }

    fn line_at(&self, record: &Record<'_>, component: &str, now: SystemTime) -> String {
        let time = Civil::from(now);
        let mut line = String::with_capacity(160);
        for piece in &self.pieces {
            self.write(&mut line, piece, record, component, &time);
        }
        line
    }

    fn write(&self, line: &mut String, piece: &Piece, record: &Record<'_>, component: &str, time: &Civil) {
        // Writing to a String cannot fail.
        let _ = match piece {
            Piece::Component => line.write_str(component),
            Piece::Day => write!(line, "{:02}", time.day),
            Piece::File => line.write_str(record.file().unwrap_or("?")),
            Piece::FileShort => {
                let file = record.file().unwrap_or("?");
                line.write_str(file.rsplit('/').next().unwrap_or(file))
            }
            Piece::Hour => write!(line, "{:02}", time.second_of_day / 3_600),
            Piece::Level => line.write_str(level_name(record.level())),
            Piece::LevelShort => line.write_str(&level_name(record.level())[..1].to_uppercase()),
            Piece::Line => write!(line, "{}", record.line().unwrap_or(0)),
            Piece::Literal(text) => line.write_str(text),
            Piece::Message if self.escaped => line.write_str(&escape(&record.args().to_string())),
            Piece::Message => write!(line, "{}", record.args()),
            Piece::MessageEscaped => line.write_str(&escape(&record.args().to_string())),
            Piece::MessageJson => line.write_str(&escape_json(&record.args().to_string())),
            Piece::Microseconds => write!(line, "{:06}", time.nanos / 1_000),
            Piece::Milliseconds => write!(line, "{:03}", time.nanos / 1_000_000),
            Piece::Minute => write!(line, "{:02}", time.second_of_day / 60 % 60),
            Piece::Month => write!(line, "{:02}", time.month),
            Piece::Nanoseconds => write!(line, "{:09}", time.nanos),
            Piece::Offset => line.write_str("+00:00"),
            Piece::Process => write!(line, "{}", std::process::id()),
            Piece::Second => write!(line, "{:02}", time.second_of_day % 60),
            Piece::Thread => write!(line, "{}", rustix::thread::gettid().as_raw_nonzero()),
            Piece::Year => write!(line, "{:04}", time.year),
        };
    }
}

fn flag_pieces(flag: char) -> Result<Vec<Piece>, FormatError> {
    let text = |text: &str| Piece::Literal(text.to_owned());
    Ok(match flag {
        'D' => vec![Piece::Month, text("/"), Piece::Day, text("/"), Piece::Year],
        'F' => vec![Piece::Nanoseconds],
        'H' => vec![Piece::Hour],
        'L' => vec![Piece::LevelShort],
        'M' => vec![Piece::Minute],
        'P' => vec![Piece::Process],
        'S' => vec![Piece::Second],
        'T' => vec![Piece::Hour, text(":"), Piece::Minute, text(":"), Piece::Second],
        'Y' => vec![Piece::Year],
        '_' => vec![Piece::MessageEscaped],
        'd' => vec![Piece::Day],
        'e' => vec![Piece::Milliseconds],
        'f' => vec![Piece::Microseconds],
        'g' => vec![Piece::File],
        'j' => vec![Piece::MessageJson],
        'l' => vec![Piece::Level],
        'm' => vec![Piece::Month],
        'n' => vec![Piece::Component],
        's' => vec![Piece::FileShort],
        't' => vec![Piece::Thread],
        'v' => vec![Piece::Message],
        'z' => vec![Piece::Offset],
        '#' => vec![Piece::Line],
        other => return Err(FormatError(other.to_string())),
    })
}

fn level_name(level: log::Level) -> &'static str {
    match level {
        log::Level::Debug => "debug",
        log::Level::Error => "error",
        log::Level::Info => "info",
        log::Level::Trace => "trace",
        log::Level::Warn => "warning",
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t")
}

/// The inside of a JSON string.
fn escape_json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// A moment in the UTC calendar.
struct Civil {
    year: i64,
    month: u64,
    day: u64,
    second_of_day: u64,
    nanos: u32,
}

impl From<SystemTime> for Civil {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (year, month, day) = civil_from_days(since.as_secs() / 86_400);
        Self { year, month, day, second_of_day: since.as_secs() % 86_400, nanos: since.subsec_nanos() }
    }
}

/// Days since 1970-01-01 as a date (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil_from_days(days: u64) -> (i64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year as i64, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pattern: &str, message: &str, escaped: bool) -> String {
        let time = UNIX_EPOCH + Duration::new(1_709_210_096, 7_089_123);
        Format::parse(pattern, escaped).unwrap().line_at(
            &Record::builder()
                .level(log::Level::Warn)
                .target("culvert::http")
                .file(Some("dataplane/src/http/mod.rs"))
                .line(Some(42))
                .args(format_args!("{message}"))
                .build(),
            "http",
            time,
        )
    }

    #[test]
    fn the_default_is_envoys() {
        let thread = rustix::thread::gettid().as_raw_nonzero();
        assert_eq!(
            line(DEFAULT_FORMAT, "hello", false),
            format!(
                "[2024-02-29 12:34:56.007][{thread}][warning][http] [dataplane/src/http/mod.rs:42] hello"
            )
        );
    }

    #[test]
    fn istios_format_is_understood() {
        let text = line("%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t", "x", false);
        assert!(
            text.starts_with(
                "2024-02-29T12:34:56.007089Z\twarning\tenvoy http dataplane/src/http/mod.rs:42\tx\tthread="
            ),
            "{text}"
        );
    }

    #[test]
    fn messages_can_be_escaped() {
        assert_eq!(line("%v", "a\nb\"\\", false), "a\nb\"\\");
        assert_eq!(line("%v", "a\nb\\", true), "a\\nb\\\\");
        assert_eq!(line("%_", "a\nb", false), "a\\nb");
        assert_eq!(line("{\"m\":\"%j\"}", "a\"\n", false), "{\"m\":\"a\\\"\\n\"}");
    }

    #[test]
    fn short_and_literal_flags() {
        assert_eq!(line("%L %s 100%% %F %z %D", "", false), "W mod.rs 100% 007089123 +00:00 02/29/2024");
    }

    #[test]
    fn unknown_flags_are_refused_by_name() {
        assert_eq!(Format::parse("%v %Q", false), Err(FormatError("Q".to_owned())));
        assert!(Format::parse("100%", false).is_err());
    }

    #[test]
    fn dates_at_the_edges() {
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(10_956), (1999, 12, 31));
        assert_eq!(civil_from_days(11_016), (2000, 2, 29));
        assert_eq!(civil_from_days(47_540), (2100, 2, 28));
        assert_eq!(civil_from_days(47_541), (2100, 3, 1));
    }
}
