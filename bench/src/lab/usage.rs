//! What a process and its descendants use, from /proc: needs no privilege and no cgroup.

use std::fs;
use std::io;

/// Clock ticks per second in `/proc/PID/stat`; `USER_HZ` is 100 on every architecture Linux still runs servers on.
const TICK_US: u64 = 10_000;

/// CPU time the process and its descendants have used so far, microseconds. Threads that ended are missing, which is why
/// only differences over a time in which none ends mean something.
///
/// # Errors
/// When the process does not exist any more.
pub fn cpu_us(pid: u32) -> io::Result<u64> {
    let mut total = 0;
    for_each_task(pid, &mut |directory| {
        // Nanoseconds on a CPU; the scheduler's own account, without the rounding of clock ticks.
        let schedstat = fs::read_to_string(format!("{directory}/schedstat")).unwrap_or_default();
        total += match schedstat.split(' ').next().and_then(|field| field.parse::<u64>().ok()) {
            Some(nanoseconds) => nanoseconds / 1000,
            None => ticks(&fs::read_to_string(format!("{directory}/stat")).unwrap_or_default()) * TICK_US,
        };
    })?;
    Ok(total)
}

/// Resident memory of the process and its descendants, KB; of a process that only waits for another (a wrapper script)
/// nothing is counted.
///
/// # Errors
/// When the process does not exist any more.
pub fn rss_kb(pid: u32) -> io::Result<u64> {
    let children = children(pid)?;
    if !children.is_empty() {
        return Ok(children.into_iter().filter_map(|child| rss_kb(child).ok()).sum());
    }
    let path = format!("/proc/{pid}/smaps_rollup");
    // Exact where it may be read; the status file's figure lags behind by up to 64 pages per CPU.
    if let Some(kb) = fs::read_to_string(path).ok().and_then(|text| field_kb(&text, "Rss:")) {
        return Ok(kb);
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    field_kb(&status, "VmRSS:").ok_or_else(|| io::Error::other("/proc/PID/status: no VmRSS"))
}

fn for_each_task(pid: u32, visit: &mut impl FnMut(&str)) -> io::Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        visit(&task.path().to_string_lossy());
    }
    for child in children(pid)? {
        // One that ended in between is gone.
        let _ = for_each_task(child, visit);
    }
    Ok(())
}

fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    Ok(children)
}

/// User and system time of a `stat` line: fields 14 and 15, counted behind the name, which may hold anything.
fn ticks(stat: &str) -> u64 {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn field_kb(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let line = "12 (a ) b) S 1 12 12 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 100 1000 10 1";
        assert_eq!(ticks(line), 12);
        assert_eq!(ticks("nonsense"), 0);
    }

    #[test]
    fn descendants_count_and_wrappers_weigh_nothing() {
        // The shell waits for a second one, which works.
        let script = "sh -c 'i=0; while :; do i=$((i+1)); done' & wait";
        let mut child = Command::new("sh").args(["-c", script]).spawn().expect("sh");
        let pid = child.id();
        let deadline = Instant::now() + Duration::from_secs(30);
        while cpu_us(pid).expect("cpu") < 20_000 {
            assert!(Instant::now() < deadline, "no CPU time was seen");
            std::thread::sleep(Duration::from_millis(5));
        }
        let inner = children(pid).expect("children");
        assert_eq!(inner.len(), 1);
        assert!(rss_kb(pid).expect("rss") > 0);
        for pid in inner {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
        child.wait().expect("wait");
        assert!(cpu_us(pid).is_err() && rss_kb(pid).is_err());
        assert_eq!(field_kb("Name: x\nVmRSS:\t    12 kB\n", "VmRSS:"), Some(12));
    }
}
