//! What is asked of control planes.

use std::{collections::BTreeSet, sync::Arc};

use culvert_model::SourceSpecifier;

use super::{Store, Subscription};
use crate::remote::{Interest, ResourceType, Wanted};

impl Store {
    /// What is wanted from control planes, when that is something else than the last time.
    pub(crate) fn take_wanted(&mut self) -> Option<Wanted> {
        if !std::mem::take(&mut self.wanted_changed) {
            return None;
        }
        let mut wanted = Wanted::new();
        for index in 0..self.feeds.len() {
            let feed = &self.feeds[index];
            let Some(source) = feed.source.clone() else { continue };
            if matches!(source, SourceSpecifier::File { .. }) {
                continue;
            }
            if feed.stale {
                let is_started = |subscription: &Option<Box<Subscription>>| {
                    subscription.as_deref().is_some_and(Subscription::is_started)
                };
                let wildcard = feed.collection.is_some_and(|id| is_started(&self.entry(id).subscription));
                let names = feed.names.iter().filter(|(_, id)| is_started(&self.entry(**id).subscription));
                let names = names.map(|(name, _)| name.clone()).collect();
                let interest = Arc::new(Interest { wildcard, names });
                let feed = &mut self.feeds[index];
                feed.interest = interest;
                feed.stale = false;
            }
            let feed = &self.feeds[index];
            if feed.interest.wildcard || !feed.interest.names.is_empty() {
                wanted.insert((source, feed.kind.into()), feed.interest.clone());
            }
        }
        Some(wanted)
    }

    /// Names that are wanted as before and have to be sent again.
    pub(crate) fn take_renewed(&mut self) -> Vec<(SourceSpecifier, ResourceType, BTreeSet<String>)> {
        let renewed = std::mem::take(&mut self.renewed);
        let known = renewed.into_iter().filter_map(|(feed, names)| {
            let feed = &self.feeds[feed.0 as usize];
            Some((feed.source.clone()?, feed.kind.into(), names))
        });
        known.collect()
    }
}
