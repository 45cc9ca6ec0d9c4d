//! Incremental xDS: requests say what has changed in what is wanted, responses what has changed in the resources.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use envoy_types::pb::envoy::{config::core::v3::Node, service::discovery::v3::DeltaDiscoveryRequest};

use super::{Incoming, Protocol, Received, error_detail, response_type, unwrap};
use crate::remote::{
    types::{DeliveryId, Interest, ResourceType},
    wire,
};

/// The name that asks for everything.
const WILDCARD: &str = "*";

/// The types that one stream carries.
#[derive(Debug, Default)]
pub(in crate::remote) struct Delta {
    types: BTreeMap<ResourceType, Subscription>,
}

#[derive(Debug, Default)]
struct Subscription {
    /// Empty when nothing is wanted any more.
    interest: Arc<Interest>,
    /// Whether a request was sent on this stream.
    started: bool,
    /// Since the last request on this stream.
    subscribe: BTreeSet<String>,
    /// Since the last request on this stream.
    unsubscribe: BTreeSet<String>,
    /// Versions of the resources that were accepted. Outlive the stream. None, the empty one, of a resource whose last
    /// response was refused: what it was before, what has come since, or nothing at all. The control plane has to send
    /// what there is of it, or say that it is gone.
    versions: HashMap<String, String>,
    /// Delivered and not answered, in order.
    open: VecDeque<Open>,
    /// Answered and not said so, in order.
    answers: VecDeque<(String, Result<(), String>)>,
    /// Whether those are no reason for a request yet.
    paused: bool,
}

#[derive(Debug)]
struct Open {
    id: DeliveryId,
    /// `None` once the stream it came on is gone.
    nonce: Option<String>,
    versions: Vec<(String, String)>,
    removed: Vec<String>,
}

impl Subscription {
    fn is_due(&self) -> bool {
        if self.started {
            let is_answer_due = !self.answers.is_empty() && !self.paused;
            return is_answer_due || !self.subscribe.is_empty() || !self.unsubscribe.is_empty();
        }
        // What is still unanswered from the stream before belongs into the versions of the first request. A first
        // request without names would ask for everything.
        self.open.is_empty() && (self.interest.wildcard || !self.interest.names.is_empty())
    }

    fn request(&mut self, resource_type: ResourceType) -> DeltaDiscoveryRequest {
        let mut request =
            DeltaDiscoveryRequest { type_url: resource_type.type_url(), ..DeltaDiscoveryRequest::default() };
        if self.started {
            if let Some((nonce, result)) = self.answers.pop_front() {
                request.response_nonce = nonce;
                request.error_detail = result.err().map(|reason| error_detail(&reason));
            }
            request.resource_names_subscribe = std::mem::take(&mut self.subscribe).into_iter().collect();
            request.resource_names_unsubscribe = std::mem::take(&mut self.unsubscribe).into_iter().collect();
            return request;
        }
        self.started = true;
        self.subscribe.clear();
        self.unsubscribe.clear();
        request.resource_names_subscribe = self.interest.names.iter().cloned().collect();
        if self.interest.wildcard && !self.interest.names.is_empty() {
            request.resource_names_subscribe.push(WILDCARD.to_owned());
        }
        request.initial_resource_versions = self.versions.clone();
        request
    }

    fn change(&mut self, interest: Arc<Interest>, keep: bool) {
        let old = std::mem::replace(&mut self.interest, interest);
        let names =
            |interest: &'_ Interest| interest.wildcard.then(|| WILDCARD.to_owned()).into_iter().collect();
        let (old_wildcard, new_wildcard): (BTreeSet<String>, BTreeSet<String>) =
            (names(&old), names(&self.interest));
        let new = self.interest.clone();
        let gone = old.names.difference(&new.names).chain(old_wildcard.difference(&new_wildcard));
        for name in gone {
            if !self.subscribe.remove(name) || self.started {
                self.unsubscribe.insert(name.clone());
            }
        }
        for name in new.names.difference(&old.names).chain(new_wildcard.difference(&old_wildcard)) {
            // Also when it was to be taken back and is wanted again: what was there is forgotten here, and the control
            // plane has to send it once more.
            self.unsubscribe.remove(name);
            self.subscribe.insert(name.clone());
        }
        if !new.wildcard && !keep {
            self.versions.retain(|name, _| new.names.contains(name));
        }
        if !new.wildcard && new.names.is_empty() {
            self.versions.clear();
        }
    }
}

/// Whether resources can have other names than those that were asked for.
fn has_other_names(resource_type: ResourceType) -> bool {
    // Virtual hosts are asked for by the name of their route configuration, and by aliases.
    resource_type == ResourceType::VirtualHost
}

impl Protocol for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = wire::DeltaDiscoveryResponse;

    fn want(&mut self, resource_type: ResourceType, interest: Option<Arc<Interest>>) {
        if interest.is_none() && !self.types.contains_key(&resource_type) {
            return;
        }
        let subscription = self.types.entry(resource_type).or_default();
        subscription.change(interest.unwrap_or_default(), has_other_names(resource_type));
    }

    fn renew(&mut self, resource_type: ResourceType, interest: &Interest) {
        let Some(subscription) = self.types.get_mut(&resource_type) else { return };
        let known = subscription.interest.clone();
        for name in interest.names.intersection(&known.names) {
            subscription.versions.remove(name);
            subscription.unsubscribe.remove(name);
            subscription.subscribe.insert(name.clone());
        }
    }

    fn reset(&mut self) {
        for subscription in self.types.values_mut() {
            subscription.started = false;
            subscription.subscribe.clear();
            subscription.unsubscribe.clear();
            subscription.answers.clear();
            subscription.paused = false;
            subscription.open.iter_mut().for_each(|open| open.nonce = None);
        }
    }

    fn due(&self) -> usize {
        self.types.values().filter(|subscription| subscription.is_due()).count()
    }

    fn next_request(&mut self) -> Option<(ResourceType, DeltaDiscoveryRequest)> {
        let (resource_type, subscription) =
            self.types.iter_mut().find(|(_, subscription)| subscription.is_due())?;
        Some((*resource_type, subscription.request(*resource_type)))
    }

    fn receive(&mut self, response: wire::DeltaDiscoveryResponse, id: DeliveryId) -> Received {
        let resource_type = match response_type(&response.type_url, self.types.keys().copied()) {
            Ok(resource_type) => resource_type,
            Err(reason) => return Received::Ignored(reason),
        };
        let Some(subscription) = self.types.get_mut(&resource_type) else {
            return Received::Ignored(format!("{resource_type} was not asked for"));
        };
        if !subscription.interest.wildcard && subscription.interest.names.is_empty() {
            // It crossed the request that took the names back. Without an answer the control plane would wait.
            subscription.answers.push_back((response.nonce, Ok(())));
            return Received::Ignored(format!("{resource_type} is not wanted any more"));
        }
        let mut removed = response.removed_resources;
        removed.extend(response.removed_resource_names.into_iter().map(|name| name.name));
        let mut resources = Vec::with_capacity(response.resources.len());
        let mut broken = Vec::new();
        let mut versions = Vec::with_capacity(response.resources.len());
        for wrapper in response.resources {
            match unwrap(resource_type, wrapper) {
                Ok(resource) => {
                    if resource.body.is_some() {
                        versions.push((resource.name.clone(), resource.version.clone()));
                    }
                    resources.push(resource);
                }
                Err(reason) => broken.push(reason),
            }
        }
        let open = Open { id, nonce: Some(response.nonce), versions, removed: removed.clone() };
        subscription.open.push_back(open);
        Received::Delivery(Incoming {
            resource_type,
            version: response.system_version_info,
            full: false,
            resources,
            removed,
            broken,
        })
    }

    fn answer(&mut self, id: DeliveryId, result: Result<(), String>) -> Option<ResourceType> {
        for (resource_type, subscription) in &mut self.types {
            let Some(index) = subscription.open.iter().position(|open| open.id == id) else { continue };
            let Some(open) = subscription.open.remove(index) else { continue };
            let interest = subscription.interest.clone();
            let wanted = |name: &str| {
                interest.wildcard || interest.names.contains(name) || has_other_names(*resource_type)
            };
            let mut versions = open.versions;
            if result.is_ok() {
                for name in &open.removed {
                    subscription.versions.remove(name);
                }
            } else {
                // What is right with a refused response is applied all the same.
                versions.iter_mut().for_each(|(_, version)| version.clear());
                versions.extend(open.removed.into_iter().map(|name| (name, String::new())));
            }
            subscription.versions.extend(versions.into_iter().filter(|(name, _)| wanted(name)));
            if let Some(nonce) = open.nonce {
                subscription.answers.push_back((nonce, result));
            }
            return Some(*resource_type);
        }
        None
    }

    fn pause(&mut self, resource_type: ResourceType, paused: bool) {
        if let Some(subscription) = self.types.get_mut(&resource_type) {
            subscription.paused = paused;
        }
    }

    fn is_unanswered(&self) -> bool {
        self.types.values().any(|subscription| !subscription.open.is_empty())
    }

    fn set_node(request: &mut DeltaDiscoveryRequest, node: Node) {
        request.node = Some(node);
    }

    fn identifier(response: &wire::DeltaDiscoveryResponse) -> Option<&str> {
        response.control_plane.as_ref().map(|control_plane| control_plane.identifier.as_str())
    }
}

#[cfg(test)]
mod tests;
