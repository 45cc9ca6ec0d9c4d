//! The comparison as plain text.

use super::contender::Contender;
use super::results::{Row, ScenarioResults, ratio};
use super::targets::{Judged, Verdict};
use super::{Report, Settings};
use crate::report::Summary;
use crate::report::table::{Align, Table};

/// Tables of figures, of ratios and of targets, with what is needed to read them.
pub(super) fn render(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{}\n{}, {} x {}, {}\nculvert: {}\n",
        method(&report.settings),
        machine.kernel,
        machine.cpus,
        machine.cpu,
        machine.date,
        report.culvert,
    );
    for scenario in &report.results.scenarios {
        text.push_str(&format!("\n{}: {}\n\n", scenario.scenario.name(), scenario.scenario.title()));
        text.push_str(&figures(scenario).render());
        let ratios = ratios(scenario);
        if !ratios.is_empty() {
            let head = scenario.scenario.metrics()[0].head();
            text.push_str(&format!(
                "\n{head} of Culvert, ratio within a round [95 % interval of the median]\n\n"
            ));
            text.push_str(&ratio_table(&ratios).render());
        }
        text.push_str(&remarks(scenario));
    }
    text.push_str("\nTargets\n\n");
    text.push_str(&targets(&report.targets).render());
    text.push_str(&format!("\n{}\n", count(&report.targets)));
    text
}

/// How the figures were come by.
pub(super) fn method(settings: &Settings) -> String {
    let mut text = format!(
        "Up to {} interleaved rounds of {} s a measurement; median, and half of its 95 % bootstrap interval in percent. \
         CPU is that of the proxy. p50, p99, p99.9: {} requests/s, open loop, latency from when a request was due; \
         1 conn: one request at a time.",
        settings.rounds, settings.seconds, settings.rate
    );
    if settings.rounds < 31 || settings.seconds < 1.0 {
        text.push_str(" Fewer than 31 rounds of 1 s: indications, not claims.");
    }
    text
}

/// A row for each contender.
fn figures(results: &ScenarioResults) -> Table {
    let metrics = results.scenario.metrics();
    let mut columns = vec![("", Align::Left)];
    columns.extend(metrics.iter().map(|metric| (metric.head(), Align::Right)));
    let mut table = Table::new(&columns);
    for row in &results.rows {
        let mut cells = vec![row.contender.label().to_owned()];
        cells.extend(metrics.iter().map(|metric| cell(row.summary(*metric).as_ref(), metric.digits())));
        table.row(cells);
    }
    table
}

/// Culvert against each other row, and its control.
pub(super) fn ratios(results: &ScenarioResults) -> Vec<(String, Summary)> {
    let metric = results.scenario.metrics()[0];
    let mut ratios = Vec::new();
    let drivers = [Contender::CulvertUring, Contender::CulvertEpoll];
    for culvert in drivers.iter().filter_map(|driver| results.row(*driver)) {
        let others = results.rows.iter().filter(|row| row.contender != culvert.contender);
        for other in others {
            let is_repeated = other.contender == Contender::CulvertUring;
            if other.contender == Contender::Control || is_repeated {
                continue;
            }
            ratios.extend(named_ratio(culvert, other, metric));
        }
    }
    if let (Some(control), Some(culvert)) = (results.row(Contender::Control), results.culvert()) {
        ratios.extend(named_ratio(control, culvert, metric));
    }
    ratios
}

fn named_ratio(of: &Row, to: &Row, metric: super::metric::Metric) -> Option<(String, Summary)> {
    let name = format!("{} / {}", of.contender.label(), to.contender.label());
    ratio(of, to, metric).map(|summary| (name, summary))
}

fn ratio_table(ratios: &[(String, Summary)]) -> Table {
    let mut table = Table::new(&[("", Align::Left), ("ratio", Align::Right), ("rounds", Align::Right)]);
    for (name, summary) in ratios {
        table.row(vec![name.clone(), interval(summary, 2), summary.rounds.to_string()]);
    }
    table
}

/// Who is absent, and what went wrong.
fn remarks(results: &ScenarioResults) -> String {
    remark_lines(results).iter().map(|line| format!("\n{line}")).collect::<String>()
        + if remark_lines(results).is_empty() { "" } else { "\n" }
}

/// One line a remark.
pub(super) fn remark_lines(results: &ScenarioResults) -> Vec<String> {
    let absent = results.absent.iter().map(|(contender, why)| format!("{}: {why}", contender.label()));
    let failed = results.rows.iter().filter(|row| row.failed > 0);
    let failed = failed.map(|row| {
        format!("{}: {} requests failed or were not answered with 2xx", row.contender.label(), row.failed)
    });
    absent.chain(failed).chain(results.notes.iter().cloned()).collect()
}

fn targets(judged: &[Judged]) -> Table {
    let mut table = Table::new(&[
        ("target", Align::Left),
        ("against", Align::Left),
        ("at most", Align::Right),
        ("measured", Align::Right),
        ("control", Align::Right),
        ("", Align::Left),
    ]);
    for judged in judged {
        let digits = if judged.unit == "MB" { 1 } else { 2 };
        let figure = |summary: &Option<Summary>| {
            summary.as_ref().map_or_else(|| "-".to_owned(), |summary| interval(summary, digits))
        };
        table.row(vec![
            judged.what.to_owned(),
            judged.against.to_owned(),
            format!("{} {}", judged.at_most, judged.unit).trim_end().to_owned(),
            figure(&judged.measured),
            figure(&judged.control),
            verdict(judged),
        ]);
    }
    table
}

/// The verdict and why.
pub(super) fn verdict(judged: &Judged) -> String {
    let words = judged.verdict.words();
    if judged.reason.is_empty() { words.to_owned() } else { format!("{words}: {}", judged.reason) }
}

/// How many targets are what.
pub(super) fn count(judged: &[Judged]) -> String {
    let of = |verdict| judged.iter().filter(|judged| judged.verdict == verdict).count();
    format!(
        "{} met, {} not met, {} not measured",
        of(Verdict::Met),
        of(Verdict::NotMet),
        of(Verdict::NotMeasured)
    )
}

/// `median [low, high]`.
pub(super) fn interval(summary: &Summary, digits: usize) -> String {
    let [low, high] = summary.interval;
    format!("{:.digits$} [{low:.digits$}, {high:.digits$}]", summary.median)
}

/// `median +-percent`.
fn cell(summary: Option<&Summary>, digits: usize) -> String {
    let Some(summary) = summary else { return "-".to_owned() };
    let [low, high] = summary.interval;
    let spread = if summary.median == 0.0 { 0.0 } else { (high - low) / 2.0 / summary.median.abs() * 100.0 };
    format!("{:.digits$} +-{spread:.0}%", summary.median)
}
