//! `envoy.filters.network.set_filter_state`: objects for filters further on.

use std::sync::Arc;

use culvert_model::FilterStateValue;

use super::Verdict;
use crate::{
    listener::Downstream,
    observe::access::{LogType, Value, append},
    worker::Worker,
};

/// The filter.
pub struct StateSetter(pub(super) Arc<Vec<FilterStateValue>>);

impl StateSetter {
    pub(super) fn begin(&self, worker: &Worker, who: &mut Downstream) -> Verdict {
        who.note();
        for value in self.0.iter() {
            let text = who.with_facts(worker, LogType::NotSet, |facts| {
                let mut text = Vec::new();
                for part in &value.format {
                    if append(part, facts, &mut text) == Value::Absent && !value.omit_empty {
                        text.push(b'-');
                    }
                }
                String::from_utf8_lossy(&text).into_owned()
            });
            if !(text.is_empty() && value.skip_if_empty) {
                who.note().state.borrow_mut().insert(value.key.clone(), text);
            }
        }
        Verdict::Continue
    }
}
