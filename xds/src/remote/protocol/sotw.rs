//! State of the world: every request names all that is wanted of a type.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use envoy_types::pb::envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest};
use prost::Message as _;

use super::{Incoming, Protocol, Received, check_type, error_detail, response_type, unwrap};
use crate::remote::{
    types::{Body, Broken, DeliveryId, Interest, RemoteResource, ResourceType},
    wire,
};

/// A resource with a name and a time to live around it.
const WRAPPER: &str = "envoy.service.discovery.v3.Resource";

/// The types that one stream carries.
#[derive(Debug, Default)]
pub(in crate::remote) struct Sotw {
    types: BTreeMap<ResourceType, Subscription>,
}

#[derive(Debug, Default)]
struct Subscription {
    /// `None` when nothing is wanted any more.
    interest: Option<Arc<Interest>>,
    /// `version_info` that was accepted last. Outlives the stream.
    version: String,
    /// Whether another one was refused since, of which a part may have been applied. A control plane that has gone back to
    /// the version before must not believe that nothing is to be done.
    refused: bool,
    /// Of the last response on this stream.
    nonce: String,
    /// What the last request on this stream asked for.
    asked: Option<Arc<Interest>>,
    /// Whether to ask again although the names are the same.
    again: bool,
    /// Delivered and not answered, in order.
    open: VecDeque<Open>,
    /// The answer to the last response, until a request takes it along.
    answer: Option<Result<(), String>>,
    /// Whether that is no reason for a request yet.
    paused: bool,
}

#[derive(Debug)]
struct Open {
    id: DeliveryId,
    version: String,
    /// `None` once the stream it came on is gone.
    nonce: Option<String>,
}

impl Subscription {
    /// Whether anything is wanted.
    fn wants(&self) -> bool {
        self.interest.as_ref().is_some_and(|interest| interest.wildcard || !interest.names.is_empty())
    }

    /// Whether a request is to be sent. While a response is unanswered there is none: it would carry either the nonce
    /// before, which control planes drop, or the new one, which they would take for the answer.
    fn is_due(&self) -> bool {
        if !self.open.is_empty() {
            return false;
        }
        match (&self.interest, &self.asked) {
            _ if self.answer.is_some() && !self.paused => true,
            (Some(interest), None) => interest.wildcard || !interest.names.is_empty(),
            (Some(interest), Some(asked)) => self.again || interest != asked,
            // The last names are taken back; a wildcard cannot be, an empty list is one.
            (None, Some(asked)) => !asked.wildcard && !asked.names.is_empty(),
            (None, None) => false,
        }
    }

    fn change(&mut self, interest: Option<Arc<Interest>>) {
        let old = std::mem::replace(&mut self.interest, interest).unwrap_or_default();
        let new = self.interest.clone().unwrap_or_default();
        if !new.wildcard && new.names.is_empty() {
            // Nothing of what that version held is left.
            self.version.clear();
        }
        // Names that went and came back, unnoticed by the control plane: it has to send once more what is forgotten here.
        let unnoticed = |asked: &Interest| {
            new.names.difference(&old.names).any(|name| asked.names.contains(name))
                || (asked.wildcard && new.wildcard && !old.wildcard)
        };
        if self.asked.as_deref().is_some_and(unnoticed) {
            self.version.clear();
            self.again = true;
        }
    }

    fn request(&mut self, resource_type: ResourceType) -> DiscoveryRequest {
        let interest = self.interest.clone().unwrap_or_default();
        let mut names: Vec<_> = interest.names.iter().cloned().collect();
        if interest.wildcard && !names.is_empty() {
            names.push("*".to_owned());
        }
        let error_detail = match self.answer.take() {
            Some(Err(reason)) => Some(error_detail(&reason)),
            Some(Ok(())) | None => None,
        };
        self.again = false;
        let is_first = self.asked.replace(interest).is_none();
        DiscoveryRequest {
            version_info: if is_first && self.refused { String::new() } else { self.version.clone() },
            resource_names: names,
            type_url: resource_type.type_url(),
            response_nonce: self.nonce.clone(),
            error_detail,
            ..DiscoveryRequest::default()
        }
    }
}

impl Protocol for Sotw {
    type Request = DiscoveryRequest;
    type Response = wire::DiscoveryResponse;

    fn want(&mut self, resource_type: ResourceType, interest: Option<Arc<Interest>>) {
        if interest.is_none() && !self.types.contains_key(&resource_type) {
            return;
        }
        let subscription = self.types.entry(resource_type).or_default();
        if subscription.interest == interest {
            return;
        }
        subscription.change(interest);
    }

    fn renew(&mut self, resource_type: ResourceType, _: &Interest) {
        if let Some(subscription) = self.types.get_mut(&resource_type) {
            subscription.again = true;
        }
    }

    fn reset(&mut self) {
        for subscription in self.types.values_mut() {
            subscription.nonce.clear();
            subscription.asked = None;
            subscription.again = false;
            subscription.answer = None;
            subscription.paused = false;
            subscription.open.iter_mut().for_each(|open| open.nonce = None);
        }
        self.types.retain(|_, subscription| subscription.interest.is_some() || !subscription.open.is_empty());
    }

    fn due(&self) -> usize {
        self.types.values().filter(|subscription| subscription.is_due()).count()
    }

    fn next_request(&mut self) -> Option<(ResourceType, DiscoveryRequest)> {
        let (resource_type, subscription) =
            self.types.iter_mut().find(|(_, subscription)| subscription.is_due())?;
        Some((*resource_type, subscription.request(*resource_type)))
    }

    fn receive(&mut self, response: wire::DiscoveryResponse, id: DeliveryId) -> Received {
        let resource_type = match response_type(&response.type_url, self.types.keys().copied()) {
            Ok(resource_type) => resource_type,
            Err(reason) => return Received::Ignored(reason),
        };
        let Some(subscription) = self.types.get_mut(&resource_type) else {
            return Received::Ignored(format!("{resource_type} was not asked for"));
        };
        subscription.nonce.clone_from(&response.nonce);
        if !subscription.wants() {
            return Received::Ignored(format!("{resource_type} is not wanted any more"));
        }
        // What was said about the response before is of no interest to the control plane any more.
        subscription.answer = None;
        let open = Open { id, version: response.version_info.clone(), nonce: Some(response.nonce) };
        subscription.open.push_back(open);
        let mut resources = Vec::with_capacity(response.resources.len());
        let mut broken = Vec::new();
        for any in response.resources {
            match resource(resource_type, any) {
                Ok(resource) => resources.push(resource),
                Err(reason) => broken.push(reason),
            }
        }
        Received::Delivery(Incoming {
            resource_type,
            version: response.version_info,
            full: resource_type.is_full_state(),
            resources,
            removed: Vec::new(),
            broken,
        })
    }

    fn answer(&mut self, id: DeliveryId, result: Result<(), String>) -> Option<ResourceType> {
        for (resource_type, subscription) in &mut self.types {
            let Some(index) = subscription.open.iter().position(|open| open.id == id) else { continue };
            let Some(open) = subscription.open.remove(index) else { continue };
            subscription.refused = result.is_err();
            if result.is_ok() && subscription.wants() {
                subscription.version = open.version;
            }
            // Only the last response can be answered: its nonce is the one that counts.
            if subscription.open.is_empty() && open.nonce.is_some_and(|nonce| nonce == subscription.nonce) {
                subscription.answer = Some(result);
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

    fn set_node(request: &mut DiscoveryRequest, node: Node) {
        request.node = Some(node);
    }

    fn identifier(response: &wire::DiscoveryResponse) -> Option<&str> {
        response.control_plane.as_ref().map(|control_plane| control_plane.identifier.as_str())
    }
}

/// An entry of a response, in a wrapper or not.
pub(in crate::remote) fn resource(
    resource_type: ResourceType,
    any: wire::Any,
) -> Result<RemoteResource, Broken> {
    if any.type_url.rsplit('/').next() == Some(WRAPPER) {
        let wrapper = wire::Resource::decode(any.value)
            .map_err(|error| Broken { name: None, reason: format!("a malformed Resource: {error}") })?;
        return unwrap(resource_type, wrapper);
    }
    check_type(resource_type, &any.type_url).map_err(|reason| Broken { name: None, reason })?;
    let body = Some(Body { type_url: any.type_url, value: any.value });
    Ok(RemoteResource { body, ..RemoteResource::default() })
}

#[cfg(test)]
mod tests;
