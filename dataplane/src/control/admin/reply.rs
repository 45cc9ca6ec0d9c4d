//! What an endpoint answers.

use hyper::StatusCode;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=UTF-8";
const TEXT: &str = "text/plain; charset=UTF-8";

/// Status, type and body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Reply {
    /// 200 with text.
    pub(super) fn text(body: impl Into<String>) -> Self {
        Self::status(StatusCode::OK, body)
    }

    /// What Envoy answers when it did what it was asked.
    pub(super) fn ok() -> Self {
        Self::text("OK\n")
    }

    /// 200 with a page.
    pub(super) fn html(body: String) -> Self {
        Self { status: StatusCode::OK, content_type: HTML, body }
    }

    /// 200 with JSON over several lines, indented by one space as Envoy does.
    pub(super) fn json(value: &Value) -> Self {
        Self { status: StatusCode::OK, content_type: JSON, body: pretty(value) }
    }

    /// 200 with JSON on one line.
    pub(super) fn json_compact(value: &Value) -> Self {
        Self { status: StatusCode::OK, content_type: JSON, body: format!("{value}\n") }
    }

    /// 400 with text.
    pub(super) fn bad_request(body: impl Into<String>) -> Self {
        Self::status(StatusCode::BAD_REQUEST, body)
    }

    /// Any status with text.
    pub(super) fn status(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, content_type: TEXT, body: body.into() }
    }
}

fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(b" "));
    // A JSON value always serialises, and into a vector writing cannot fail.
    let _ = value.serialize(&mut serializer);
    out.push(b'\n');
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_is_indented_by_one_space() {
        let reply = Reply::json(&json!({"a": [1, {"b": "é"}], "c": []}));
        assert_eq!(reply.body, "{\n \"a\": [\n  1,\n  {\n   \"b\": \"é\"\n  }\n ],\n \"c\": []\n}\n");
        assert_eq!(Reply::json_compact(&json!({"a": 1})).body, "{\"a\":1}\n");
    }
}
