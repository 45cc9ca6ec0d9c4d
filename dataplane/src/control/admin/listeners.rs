//! `/listeners`: names and addresses, as text or as `admin.v3.Listeners`.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::control::admin::backend::{Backend, HostAddress, ListenerView};
use crate::control::admin::query::Query;
use crate::control::admin::reply::Reply;

/// `/listeners`
pub(super) fn listeners(query: &Query, backend: &dyn Backend) -> Reply {
    let listeners = backend.listeners();
    if query.first("format") == Some("json") {
        let statuses: Vec<Value> = listeners.iter().map(listener_json).collect();
        return Reply::json(&json!({ "listener_statuses": statuses }));
    }
    let mut out = String::new();
    for listener in &listeners {
        for address in &listener.addresses {
            let _ = writeln!(out, "{}::{address}", listener.name);
        }
    }
    Reply::text(out)
}

fn listener_json(listener: &ListenerView) -> Value {
    let mut status = Map::from_iter([("name".to_owned(), json!(listener.name))]);
    let mut addresses = listener.addresses.iter().map(HostAddress::json);
    if let Some(first) = addresses.next() {
        status.insert("local_address".to_owned(), first);
    }
    let more: Vec<Value> = addresses.collect();
    if !more.is_empty() {
        status.insert("additional_local_addresses".to_owned(), json!(more));
    }
    Value::Object(status)
}
