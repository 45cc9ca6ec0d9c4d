//! The examination as a table for people, and as JSON whose keys stay.

use std::io::{self, Write};

use culvert_bpf::doctor::{Finding, Group, Need, Status};
use serde_json::{Map, Value as Json, json};

use super::Examination;
use crate::cli;

/// The version of the JSON document: raised when a key changes its meaning or goes.
const SCHEMA: u32 = 1;

/// A line for each finding; one more with what it costs for each that is not in order.
///
/// # Errors
/// Of the output.
pub fn table(examination: &Examination, out: &mut impl Write) -> io::Result<()> {
    let width = examination.findings.iter().map(|finding| finding.key.len()).max().unwrap_or(0);
    let mut group: Option<Group> = None;
    for finding in &examination.findings {
        if group != Some(finding.group) {
            let gap = if group.is_some() { "\n" } else { "" };
            writeln!(out, "{gap}{}", finding.group.name())?;
            group = Some(finding.group);
        }
        line(finding, width, out)?;
    }
    writeln!(out, "\nverdict")?;
    for (mode, lacking) in &examination.modes {
        let status = if lacking.is_empty() { Status::Ok } else { Status::Missing };
        let mut text = "can serve".to_owned();
        if !lacking.is_empty() {
            text = format!("cannot: {}", lacking.join(", "));
        }
        writeln!(out, "  {status:<8}  {:<width$}  {text}", format!("--capture {mode}"))?;
    }
    let (status, text) = match &examination.splice.failure() {
        // See `culvert::capture::splice::decide`.
        None => (Status::Ok, "possible with --splice on; off under --splice auto".to_owned()),
        Some(check) => {
            (Status::Degraded, format!("off under --splice auto: {}: {}", check.property, check.detail))
        }
    };
    writeln!(out, "  {status:<8}  {:<width$}  {text}", "splicing")?;
    let counts = [Status::Ok, Status::Degraded, Status::Unknown, Status::Missing]
        .map(|status| format!("{} {status}", examination.count(status)));
    let used = examination.chosen().map_or_else(|| "nothing".to_owned(), |mode| format!("--capture {mode}"));
    writeln!(out, "\nCulvert can use {used} and {}. Findings: {}.", examination.io.tier, counts.join(", "))
}

fn line(finding: &Finding, width: usize, out: &mut impl Write) -> io::Result<()> {
    let Finding { key, status, found, purpose, cost, .. } = finding;
    let purpose = if purpose.is_empty() { String::new() } else { format!(" | {purpose}") };
    writeln!(out, "  {status:<8}  {key:<width$}  {found}{purpose}")?;
    if *status != Status::Ok && !cost.is_empty() {
        writeln!(out, "  {:8}  {:width$}    cost: {cost}", "", "")?;
    }
    Ok(())
}

/// One document: the verdicts, then every finding under its group and key.
pub fn json(examination: &Examination) -> Json {
    let mut findings: Map<String, Json> = Map::new();
    for finding in &examination.findings {
        let group = findings.entry(finding.group.name()).or_insert_with(|| json!({}));
        group[finding.key] = json!({
            "status": finding.status.to_string(),
            "found": finding.found,
            "purpose": finding.purpose,
            "cost": finding.cost,
            "needed_by": needed_by(finding.need),
        });
    }
    let modes = examination.modes.iter().map(|(mode, lacking)| {
        (mode.to_string(), json!({ "serves": lacking.is_empty(), "missing": lacking }))
    });
    let modes: Map<String, Json> = modes.collect();
    json!({
        "schema": SCHEMA,
        "version": cli::version(),
        "serves": examination.chosen().is_some(),
        "capture": {
            "asked": examination.capture.map_or_else(|| "auto".to_owned(), |mode| mode.to_string()),
            "chosen": examination.chosen().map(|mode| mode.to_string()),
            "modes": modes,
        },
        "io": {
            "driver": examination.io.driver.to_string(),
            "tier": examination.io.tier,
            "reason": examination.io.reason,
        },
        "splice": {
            "auto": "off",
            "failed": examination.splice.failure().map(|check| check.property.name()),
            "reason": examination.splice.failure().map(|check| check.detail.as_str()),
            "verdict": examination.splice.verdict,
        },
        "findings": findings,
    })
}

const fn needed_by(need: Need) -> &'static [&'static str] {
    match need {
        Need::None => &[],
        Need::Ebpf => &["ebpf"],
        Need::Iptables => &["iptables"],
        Need::Capture => &["ebpf", "iptables"],
        Need::Serving => &["ebpf", "iptables", "none"],
    }
}
