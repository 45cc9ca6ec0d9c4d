//! The table of `culvert top`, as text.

use std::{fmt::Write as _, time::Instant};

use crate::capture::{PodCounters, PodReport};

/// The pods at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    pub(super) at: Instant,
    pub(super) pods: Vec<PodReport>,
}

/// Which pod comes first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Order {
    /// The one with the most new connections in the last interval.
    #[default]
    Busiest,
    /// By name.
    Name,
}

/// A figure of a pod's connections, with its heading.
type Column = (&'static str, fn(&PodCounters) -> u64);

/// What is shown of a pod's connections.
const COLUMNS: [Column; 5] = [
    ("CAPTURED", |it| it.captured),
    ("DIRECT", |it| it.direct),
    ("BYPASSED", |it| it.bypassed),
    ("REFUSED", |it| it.refused),
    ("NO-DEST", |it| it.no_original_dst),
];

/// Lines above the pods.
const HEAD: usize = 2;

/// One line a pod: how many connections went which way, in all and (with an earlier sample) per second. Of more pods than
/// fit into `rows` lines the last ones are summed up in a line.
pub(super) fn render(now: &Sample, before: Option<&Sample>, order: Order, rows: usize) -> String {
    let seconds = before.map(|before| now.at.saturating_duration_since(before.at).as_secs_f64());
    let mut lines: Vec<Line<'_>> = now.pods.iter().map(|pod| Line::new(pod, before, seconds)).collect();
    match order {
        Order::Busiest => {
            let busier = |a: &Line<'_>, b: &Line<'_>| b.busy().total_cmp(&a.busy());
            lines.sort_by(|a, b| busier(a, b).then_with(|| a.pod.name.cmp(&b.pod.name)));
        }
        Order::Name => lines.sort_by(|a, b| a.pod.name.cmp(&b.pod.name)),
    }
    let pending = lines.iter().filter(|line| line.pod.pending.is_some()).count();
    let width = lines.iter().map(|line| line.pod.name.chars().count()).max().unwrap_or(0).max("POD".len());
    let mut text = format!("culvert top: {} pods, {pending} of them waiting to be captured\n", lines.len());
    let _ = write!(text, "{:width$}  {:9}{:11}", "POD", "MODE", "POLICY");
    for (heading, _) in COLUMNS {
        let _ = write!(text, "{heading:>12}{:>9}", "/s");
    }
    text.push('\n');
    let room = rows.saturating_sub(HEAD);
    // A line that says how many there are more needs a place of its own.
    let shown = if lines.len() <= room { lines.len() } else { room.saturating_sub(1) };
    for line in &lines[..shown] {
        line.write(&mut text, width);
    }
    if shown < lines.len() {
        let _ = writeln!(text, "... and {} pods more", lines.len() - shown);
    }
    text
}

/// A pod and what happened to it lately.
struct Line<'a> {
    pod: &'a PodReport,
    /// Per second, by column; `None` without an earlier sample.
    rates: [Option<f64>; COLUMNS.len()],
}

impl<'a> Line<'a> {
    fn new(pod: &'a PodReport, before: Option<&Sample>, seconds: Option<f64>) -> Self {
        // A pod that was enrolled again counts from nothing.
        let earlier = before.and_then(|it| it.pods.iter().find(|it| it.netns_cookie == pod.netns_cookie));
        let rates = COLUMNS.map(|(_, figure)| {
            let (earlier, seconds) = (earlier?, seconds.filter(|seconds| *seconds > 0.0)?);
            let grown = figure(&pod.counters).checked_sub(figure(&earlier.counters))?;
            Some(grown as f64 / seconds)
        });
        Self { pod, rates }
    }

    fn busy(&self) -> f64 {
        self.rates.iter().flatten().sum()
    }

    fn write(&self, text: &mut String, width: usize) {
        let PodReport { name, mode, policy, counters, pending, .. } = self.pod;
        let (mode, policy) = (mode.to_string(), format!("{policy:?}").to_lowercase());
        let _ = write!(text, "{name:width$}  {mode:9}{policy:11}");
        for ((_, figure), rate) in COLUMNS.iter().zip(self.rates) {
            let rate = rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
            let _ = write!(text, "{:>12}{rate:>9}", figure(counters));
        }
        if let Some(why) = pending {
            let _ = write!(text, "  waits: {why}");
        }
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::capture::{CaptureMode, Policy};

    fn pod(name: &str, cookie: u64, captured: u64) -> PodReport {
        PodReport {
            name: name.to_owned(),
            netns: "/run/netns/x".into(),
            cgroup: None,
            netns_cookie: cookie,
            mode: CaptureMode::Ebpf,
            policy: Policy::Strict,
            outbound: None,
            inbound: None,
            addresses: Vec::new(),
            direct: false,
            pending: None,
            counters: PodCounters { captured, ..PodCounters::default() },
        }
    }

    fn samples(before: Vec<PodReport>, now: Vec<PodReport>) -> (Sample, Sample) {
        let at = Instant::now();
        (Sample { at, pods: before }, Sample { at: at + Duration::from_secs(2), pods: now })
    }

    fn rows(text: &str) -> Vec<Vec<&str>> {
        text.lines().skip(HEAD).map(|line| line.split_whitespace().collect()).collect()
    }

    #[test]
    fn the_busiest_pod_is_first_and_shows_its_rate() {
        let (before, now) =
            samples(vec![pod("a", 1, 100), pod("b", 2, 10)], vec![pod("a", 1, 100), pod("b", 2, 15)]);
        let text = render(&now, Some(&before), Order::Busiest, usize::MAX);
        let shown = rows(&text);
        assert_eq!(shown[0][..5], ["b", "ebpf", "strict", "15", "2.5"], "{text}");
        assert_eq!(shown[1][..5], ["a", "ebpf", "strict", "100", "0.0"], "{text}");
        let text = render(&now, Some(&before), Order::Name, usize::MAX);
        assert_eq!(rows(&text)[0][0], "a");
    }

    #[test]
    fn a_pod_that_is_new_or_began_anew_has_no_rate() {
        let (before, now) = samples(vec![pod("a", 1, 100)], vec![pod("a", 1, 3), pod("b", 2, 15)]);
        let text = render(&now, Some(&before), Order::Name, usize::MAX);
        assert_eq!(rows(&text).iter().map(|row| row[4]).collect::<Vec<_>>(), ["-", "-"], "{text}");
    }

    #[test]
    fn pods_that_do_not_fit_are_counted() {
        let (_, now) = samples(vec![], (0..9).map(|n| pod(&format!("p{n}"), n, 0)).collect());
        let text = render(&now, None, Order::Name, HEAD + 4);
        assert_eq!(text.lines().count(), HEAD + 4, "{text}");
        assert!(text.ends_with("... and 6 pods more\n"), "{text}");
        assert_eq!(render(&now, None, Order::Name, HEAD + 9).lines().count(), HEAD + 9);
    }
}
