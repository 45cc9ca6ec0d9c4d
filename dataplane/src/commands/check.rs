//! `culvert check`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
};

use anyhow::bail;
use culvert::cli::{Check, Cli};
use culvert_xds::{CheckOptions, Checked, Error, ErrorKind, Note, NoteKind, Promise, Verdict};
use serde_json::{Value as Json, json};

/// Checks files. It is an error when something in them cannot be served.
pub(super) fn run(check: &Check, cli: &Cli) -> anyhow::Result<()> {
    let out = &mut io::stdout().lock();
    if check.fields {
        return Ok(print_fields(check.json, out)?);
    }
    let options = CheckOptions {
        allow_unknown_static_fields: cli.allows_unknown_static_fields(),
        reject_unknown_dynamic_fields: cli.config.reject_unknown_dynamic_fields,
        strict_secrets: check.strict_secrets,
    };
    let checked = culvert_xds::check(&check.files, options);
    match (check.json, check.summary) {
        (true, _) => writeln!(out, "{:#}", Json::Array(checked.iter().map(to_json).collect()))?,
        (false, true) => print_summary(&checked, out)?,
        (false, false) => checked.iter().try_for_each(|checked| print(checked, out))?,
    }
    let failed = checked.iter().filter(|checked| checked.verdict() != Verdict::Accepted).count();
    if failed > 0 {
        bail!("{failed} of {} not accepted", checked.len());
    }
    Ok(())
}

/// One line for an accepted resource, one for each error in another one, and below them the notes.
fn print(checked: &Checked, out: &mut impl Write) -> io::Result<()> {
    let place = format!("{}: {}", checked.file.display(), checked.title());
    if checked.errors.is_empty() {
        writeln!(out, "{place}: accepted")?;
    }
    for error in &checked.errors {
        match error.kind {
            ErrorKind::Invalid => writeln!(out, "{place}: error: {}", said(&error.field, &error.reason))?,
            ErrorKind::Unsupported if error.field.is_empty() => {
                writeln!(out, "{place}: refused: {}", error.feature())?;
            }
            ErrorKind::Unsupported => {
                writeln!(out, "{place}: refused: {} (at {})", error.feature(), error.field)?;
            }
        }
    }
    for note in &checked.notes {
        writeln!(out, "  {}", said(&note.field, &remark(note)))?;
    }
    Ok(())
}

fn said(field: &str, text: &str) -> String {
    if field.is_empty() { text.to_owned() } else { format!("{field}: {text}") }
}

fn remark(note: &Note) -> String {
    match note.kind {
        NoteKind::NoEffect => format!("accepted, no effect: {}", note.text),
        NoteKind::UnknownField => format!("unknown field left out: {}", note.text),
        NoteKind::Warning => format!("warning: {}", note.text),
    }
}

fn to_json(checked: &Checked) -> Json {
    let errors = |kind: ErrorKind| checked.errors.iter().filter(move |error| error.kind == kind);
    let refusal =
        |e: &Error| json!({ "feature": e.feature(), "field": e.field.as_str(), "reason": e.reason.as_str() });
    let error = |e: &Error| json!({ "field": e.field.as_str(), "reason": e.reason.as_str() });
    let note = |note: &Note| {
        let kind = match note.kind {
            NoteKind::NoEffect => "no_effect",
            NoteKind::UnknownField => "unknown_field",
            NoteKind::Warning => "warning",
        };
        json!({ "kind": kind, "field": note.field.as_str(), "text": note.text.as_str() })
    };
    json!({
        "file": checked.file.display().to_string(),
        "type": checked.kind.as_str(),
        "name": checked.name.as_str(),
        "verdict": match checked.verdict() {
            Verdict::Accepted => "accepted",
            Verdict::Invalid => "error",
            Verdict::Refused => "refused",
        },
        "refusals": errors(ErrorKind::Unsupported).map(refusal).collect::<Vec<_>>(),
        "errors": errors(ErrorKind::Invalid).map(error).collect::<Vec<_>>(),
        "notes": checked.notes.iter().map(note).collect::<Vec<_>>(),
    })
}

/// Errors in full, refusals by feature, and how many of each there are.
fn print_summary(checked: &[Checked], out: &mut impl Write) -> io::Result<()> {
    let invalid = |checked: &&Checked| checked.verdict() == Verdict::Invalid;
    checked.iter().filter(invalid).try_for_each(|checked| print(checked, out))?;
    let mut features: BTreeMap<String, (usize, BTreeSet<&std::path::Path>)> = BTreeMap::new();
    for checked in checked {
        let unsupported = checked.errors.iter().filter(|error| error.kind == ErrorKind::Unsupported);
        for feature in unsupported.map(Error::feature).collect::<BTreeSet<_>>() {
            let (resources, files) = features.entry(feature).or_default();
            *resources += 1;
            files.insert(&checked.file);
        }
    }
    let mut features: Vec<_> = features.into_iter().collect();
    features.sort_by(|(a, (m, _)), (b, (n, _))| n.cmp(m).then_with(|| a.cmp(b)));
    if !features.is_empty() {
        writeln!(out, "resources  files  refused")?;
    }
    for (feature, (resources, files)) in features {
        writeln!(out, "{resources:>9}  {:>5}  {feature}", files.len())?;
    }
    let count = |verdict| checked.iter().filter(|checked| checked.verdict() == verdict).count();
    writeln!(
        out,
        "{} accepted, {} refused, {} in error",
        count(Verdict::Accepted),
        count(Verdict::Refused),
        count(Verdict::Invalid)
    )
}

fn print_fields(as_json: bool, out: &mut impl Write) -> io::Result<()> {
    let promises = culvert_xds::promises();
    let of = |promise: Promise| match promise {
        Promise::Used => ("accepted", ""),
        Promise::NoEffect(reason) => ("accepted, no effect", reason),
        Promise::OnlyOff => ("accepted when it is off", ""),
    };
    if as_json {
        let fields = promises.iter().map(|p| {
            let (promise, reason) = of(p.promise);
            json!({ "message": p.message, "field": p.field, "promise": promise, "reason": reason })
        });
        return writeln!(out, "{:#}", Json::Array(fields.collect()));
    }
    for p in promises {
        let (promise, reason) = of(p.promise);
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        writeln!(out, "{}.{}: {promise}{reason}", p.message, p.field)?;
    }
    Ok(())
}
