//! `/`: a page with a link or a form for every endpoint.

use std::fmt::Write;

use crate::control::admin::backend::Backend;
use crate::control::admin::endpoints::{ENDPOINTS, Effect};
use crate::control::admin::query::Query;
use crate::control::admin::reply::Reply;

const HEAD: &str = "<!DOCTYPE html>
<html lang='en'>
<head>
  <meta charset='utf-8'>
  <title>Culvert Admin</title>
  <style>
    body { font-family: sans-serif; }
    td { padding: 4px; text-align: left; vertical-align: top; }
    td.option { padding-left: 20px; }
    tr.endpoint { background-color: #eee; }
    form { margin: 0; }
  </style>
</head>
<body>
<table>
<tr><th>Command</th><th>Description</th></tr>
";

/// `/`
pub(super) fn home(_: &Query, _: &dyn Backend) -> Reply {
    let mut out = HEAD.to_owned();
    for endpoint in ENDPOINTS.iter().filter(|endpoint| endpoint.path != "/") {
        // Relative, so that the page works behind a prefix.
        let path = endpoint.path.trim_start_matches('/');
        let method = if endpoint.effect == Effect::Changes { "post" } else { "get" };
        let _ = writeln!(
            out,
            "<tr class='endpoint'><td><form action='{path}' method='{method}' id='{path}'>\
             <button>{path}</button></form></td><td>{}</td></tr>",
            escape(endpoint.help)
        );
        for (name, meaning) in endpoint.parameters {
            let _ = writeln!(
                out,
                "<tr><td class='option'>{name} {}</td><td>{}</td></tr>",
                input(path, name),
                escape(meaning)
            );
        }
    }
    out.push_str("</table>\n</body>\n</html>\n");
    Reply::html(out)
}

/// A check box for what counts by being there, a text field for what has a value.
fn input(path: &str, name: &str) -> String {
    let kind = match name {
        "graceful" | "inboundonly" | "include_eds" | "invert_filter" | "skip_exit" | "usedonly" => "checkbox",
        _ => "text",
    };
    format!("<input type='{kind}' name='{name}' form='{path}'>")
}

/// Text as HTML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
        .replace('"', "&quot;")
}
