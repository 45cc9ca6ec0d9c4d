//! Facts without which a figure cannot be compared with another.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// The machine and moment of a measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Date and time in UTC, `2026-01-31T12:00:00Z`.
    pub date: String,
    /// Kernel name and release.
    pub kernel: String,
    /// Machine architecture.
    pub architecture: String,
    /// Model of the first CPU, as the kernel names it.
    pub cpu: String,
    /// CPUs this process may use.
    pub cpus: usize,
    /// Memory in MB.
    pub memory_mb: u64,
    /// One-minute load average before the measurement; well above zero means a noisy neighbour.
    pub load_average: f64,
}

impl Machine {
    /// Reads the facts from the running system; what it does not tell stays empty or zero.
    pub fn probe() -> Self {
        let uname = rustix::system::uname();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let loadavg = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let memory_kb =
            field(&meminfo, "MemTotal").and_then(|text| text.split_whitespace().next()?.parse().ok());
        Self {
            date: date(SystemTime::now()),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            architecture: uname.machine().to_string_lossy().into_owned(),
            cpu: field(&cpuinfo, "model name").unwrap_or_default().to_owned(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mb: memory_kb.unwrap_or(0_u64) / 1024,
            load_average: loadavg.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
        }
    }
}

/// The first value of a `key : value` file of /proc.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let value = text.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.trim() == key)?.1;
    Some(value.trim())
}

/// ISO 8601 in UTC, to the second.
fn date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil((seconds / 86_400) as i64);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Days since 1970-01-01 to year, month, day, for dates after 1970 (Howard Hinnant, "chrono-compatible low-level date
/// algorithms"): eras of 400 years that begin on 1 March, so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_right_around_leap_days() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (1_795_251_600, "2026-11-21T09:00:00Z"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn the_running_machine_is_described() {
        let machine = Machine::probe();
        assert!(machine.kernel.starts_with("Linux "), "{machine:?}");
        assert!(machine.cpus >= 1 && machine.memory_mb > 0, "{machine:?}");
    }
}
