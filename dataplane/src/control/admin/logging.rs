//! `/logging`: shows and changes levels of the application log.

use std::fmt::Write;

use hyper::StatusCode;

use crate::control::admin::backend::Backend;
use crate::control::admin::query::Query;
use crate::control::admin::reply::Reply;
use crate::logging::{self, Level, LoggingError};

/// `/logging`: `?level=L` for all components, `?NAME=L` for one, `?paths=NAME:L,NAME:L` for several. Without a parameter
/// shows the levels.
pub(super) fn logging(query: &Query, _: &dyn Backend) -> Reply {
    // The form of the home page sends the fields it does not use as empty ones.
    let given: Vec<(&str, &str)> = query
        .pairs()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, value)| !(value.is_empty() && matches!(*name, "level" | "paths" | "group")))
        .collect();
    let changed = match given[..] {
        [] => Ok(()),
        [(name, value)] => change(name, value),
        _ => Err("invalid number of parameters"),
    };
    match changed {
        Ok(()) => Reply::text(levels()),
        Err(error) => {
            let all: String = Level::ALL.iter().map(|level| format!("{level} ")).collect();
            let usage = format!(
                "error: {error}\n\n\
                 usage: /logging?<name>=<level> (change single level)\n\
                 usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
                 usage: /logging?level=<level> (change all levels)\n\
                 levels: {all}\n{}",
                levels()
            );
            Reply::status(StatusCode::BAD_REQUEST, usage)
        }
    }
}

fn change(name: &str, value: &str) -> Result<(), &'static str> {
    let result = match name {
        "level" => value.parse().map(logging::set_all),
        "paths" => logging::set_components(value),
        component => value.parse().and_then(|level| logging::set_component(component, level)),
    };
    result.map_err(|error| match error {
        LoggingError::UnknownComponent(_) => "unknown logger name",
        LoggingError::UnknownLevel(_) => "unknown logger level",
        LoggingError::Syntax(_) => "empty logger name or empty logger level",
        LoggingError::AlreadySet | LoggingError::Format(_) | LoggingError::Open { .. } => {
            "logging is not set up"
        }
    })
}

fn levels() -> String {
    let mut out = "active loggers:\n".to_owned();
    for (component, level) in logging::levels() {
        let _ = writeln!(out, "  {component}: {level}");
    }
    out.push('\n');
    out
}
