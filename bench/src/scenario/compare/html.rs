//! The comparison as one page that needs nothing else: no script, no style sheet, no address.

use std::fmt::Write;

use super::metric::Metric;
use super::plot::{Bar, Curve, bars, curves};
use super::results::{Row, ScenarioResults};
use super::targets::{Judged, Verdict};
use super::{Report, text};
use crate::report::Summary;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2024; --paper: #fff; --faint: #d8dce0; --grey: #9aa4ae; --own: #1f6feb;
  --good: #1a7f37; --bad: #c4231c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #14171a; --faint: #353b41; --grey: #6b7680;
  --own: #58a6ff; --good: #3fb950; --bad: #ff6b60; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 960px;
  margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2.4em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1em 0; }
th, td { padding: .25em .7em; border-bottom: 1px solid var(--faint); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .words { text-align: left; } .words { white-space: normal; }
.scroll { overflow-x: auto; } .note { color: var(--grey); } .own { font-weight: 600; }
.met { color: var(--good); } .not_met { color: var(--bad); } .not_measured { color: var(--grey); }
svg { width: 100%; max-width: 760px; height: auto; display: block; margin: 1em 0; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.bar { fill: var(--grey); } .bar.own { fill: var(--own); } .whisker { stroke: var(--ink); fill: none; }
.grid { stroke: var(--faint); fill: none; } .line { fill: none; stroke-width: 2; }
.c0 { stroke: #8b949e; } .c1 { stroke: #b58900; } .c2 { stroke: #cb4b16; } .c3 { stroke: #2aa198; }
.c4 { stroke: #d33682; } .c5 { stroke: #859900; } .c6 { stroke: #6c71c4; } .c7 { stroke: #1f6feb; }
.c8 { stroke: #58a6ff; } .c9 { stroke: #1f6feb; stroke-dasharray: 4 3; }
";

/// The page.
pub(super) fn render(report: &Report) -> String {
    let machine = &report.machine;
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>Culvert beside other proxies</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>Culvert beside other proxies</h1>\n<p>{}<br/>{}, {} x {}, {} MB; load average before {:.1}<br/>{}</p>\n",
        escape(&machine.date),
        escape(&machine.kernel),
        machine.cpus,
        escape(&machine.cpu),
        machine.memory_mb,
        machine.load_average,
        escape(&text::method(&report.settings)),
    );
    targets(&mut page, &report.targets);
    for scenario in &report.results.scenarios {
        section(&mut page, scenario);
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// Text that is safe between tags and in attributes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn targets(page: &mut String, judged: &[Judged]) {
    let _ = writeln!(page, "<h2>Targets: {}</h2>", text::count(judged));
    page.push_str(
        "<p>Median of the ratios within rounds with its 95 % bootstrap interval. Met: the interval reaches the target and \
         the control, Culvert against itself, contains 1.00.</p>\n<div class=\"scroll\"><table>\n\
         <tr><th>target</th><th class=\"words\">against</th><th>at most</th><th>measured</th><th>control</th>\
         <th class=\"words\"></th></tr>\n",
    );
    for judged in judged {
        let class = match judged.verdict {
            Verdict::Met => "met",
            Verdict::NotMet => "not_met",
            Verdict::NotMeasured => "not_measured",
        };
        let digits = if judged.unit == "MB" { 1 } else { 2 };
        let figure = |summary: &Option<Summary>| {
            summary.as_ref().map_or_else(String::new, |summary| text::interval(summary, digits))
        };
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td class=\"words\">{}</td><td>{} {}</td><td>{}</td><td>{}</td>\
             <td class=\"words {class}\">{}</td></tr>",
            escape(judged.what),
            escape(judged.against),
            judged.at_most,
            judged.unit,
            figure(&judged.measured),
            figure(&judged.control),
            escape(&text::verdict(judged)),
        );
    }
    page.push_str("</table></div>\n");
}

fn section(page: &mut String, results: &ScenarioResults) {
    let _ = writeln!(page, "<h2>{}</h2>", escape(results.scenario.title()));
    let metrics = results.scenario.metrics();
    let charted: &[Metric] = if metrics.contains(&Metric::Rss500) {
        &[metrics[0], Metric::Rss500, Metric::Rss9000]
    } else {
        &metrics[..1]
    };
    for &metric in charted {
        let chart: Vec<Bar> = results.rows.iter().filter_map(|row| bar(row, metric)).collect();
        if !chart.is_empty() {
            let _ = write!(page, "<h3>{}</h3>\n{}", metric.head(), bars(metric.head(), &chart));
        }
    }
    let lines: Vec<Curve> = results
        .rows
        .iter()
        .filter(|row| !row.curves.is_empty())
        .map(|row| Curve {
            label: row.contender.label().to_owned(),
            points: row.curve(),
            colour: row.contender as usize,
        })
        .collect();
    if !lines.is_empty() {
        let title = "Latency at the fixed rate, by share of requests";
        let _ = write!(page, "<h3>{title}</h3>\n{}", curves(title, &lines));
    }
    figures(page, results, metrics);
    let ratios = text::ratios(results);
    if !ratios.is_empty() {
        let _ = write!(
            page,
            "<div class=\"scroll\"><table>\n<tr><th>{}, ratio within a round</th><th>median [95 % interval]</th>\
             <th>rounds</th></tr>\n",
            metrics[0].head()
        );
        for (name, summary) in &ratios {
            let interval = text::interval(summary, 2);
            let _ = writeln!(
                page,
                "<tr><td>{}</td><td>{interval}</td><td>{}</td></tr>",
                escape(name),
                summary.rounds
            );
        }
        page.push_str("</table></div>\n");
    }
    for line in text::remark_lines(results) {
        let _ = writeln!(page, "<p class=\"note\">{}</p>", escape(&line));
    }
}

fn bar(row: &Row, metric: Metric) -> Option<Bar> {
    let summary = row.summary(metric)?;
    let label = row.contender.label().to_owned();
    Some(Bar { label, summary, digits: metric.digits(), is_own: row.contender.is_culvert() })
}

fn figures(page: &mut String, results: &ScenarioResults, metrics: &[Metric]) {
    page.push_str("<div class=\"scroll\"><table>\n<tr><th></th>");
    for metric in metrics {
        let _ = write!(page, "<th>{}</th>", metric.head());
    }
    page.push_str("</tr>\n");
    for row in &results.rows {
        let class = if row.contender.is_culvert() { " class=\"own\"" } else { "" };
        let _ = write!(page, "<tr{class}><td>{}</td>", escape(row.contender.label()));
        for metric in metrics {
            let cell = row.summary(*metric).map_or_else(String::new, |summary| {
                let digits = metric.digits();
                let [low, high] = summary.interval;
                format!("{:.digits$}<br/><small>{low:.digits$} to {high:.digits$}</small>", summary.median)
            });
            let _ = write!(page, "<td>{cell}</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}
