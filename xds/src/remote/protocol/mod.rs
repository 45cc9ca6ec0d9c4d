//! The xDS protocol on one stream, without stream, clock or threads: what was said decides what to say next.
//!
//! Both variants keep, for each type the stream carries, what is wanted, what the control plane was told and what was
//! accepted of what it sent. Requests are made when they can be sent, from the state at that moment: however often
//! something changed in between, one request says it.

mod delta;
mod sotw;

pub(super) use delta::Delta;
pub(super) use sotw::{Sotw, resource};

use std::{sync::Arc, time::Duration};

use envoy_types::pb::{envoy::config::core::v3::Node, google::rpc};

use super::{
    types::{Body, Broken, DeliveryId, Interest, RemoteResource, ResourceType},
    wire,
};

/// Longest reason of a NACK, in bytes.
const REASON_MAX: usize = 4_096;

/// One variant of the protocol.
pub(super) trait Protocol: Send + 'static {
    type Request: prost::Message + Default + Send + Sync + 'static;
    type Response: prost::Message + Default + Send + Sync + 'static;

    /// Sets what is wanted of a type from now on; `None` for nothing any more.
    fn want(&mut self, resource_type: ResourceType, interest: Option<Arc<Interest>>);

    /// Asks for resources that are known already once more.
    fn renew(&mut self, resource_type: ResourceType, interest: &Interest);

    /// The stream is gone; the next request is the first one on another.
    fn reset(&mut self);

    /// How many types have something to say.
    fn due(&self) -> usize;

    /// The next request, without node.
    fn next_request(&mut self) -> Option<(ResourceType, Self::Request)>;

    /// Takes a response in. Its resources become a delivery called `id`, which is to be answered.
    fn receive(&mut self, response: Self::Response, id: DeliveryId) -> Received;

    /// Accepts or refuses a delivery. Answers to deliveries that are not known are ignored. Returns of which type it was.
    fn answer(&mut self, id: DeliveryId, result: Result<(), String>) -> Option<ResourceType>;

    /// Whether answers of a type wait. What else there is to say of it does not, and takes them along. No stream begins
    /// so.
    fn pause(&mut self, resource_type: ResourceType, paused: bool);

    /// Whether a delivery waits for its answer.
    fn is_unanswered(&self) -> bool;

    fn set_node(request: &mut Self::Request, node: Node);

    /// What the control plane that sent `response` calls itself.
    fn identifier(response: &Self::Response) -> Option<&str>;
}

/// What a response comes to.
#[derive(Debug)]
pub(super) enum Received {
    Delivery(Incoming),
    /// Nobody asked for it; why.
    Ignored(String),
}

/// A response that somebody waits for.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) resource_type: ResourceType,
    pub(super) version: String,
    pub(super) full: bool,
    pub(super) resources: Vec<RemoteResource>,
    pub(super) removed: Vec<String>,
    pub(super) broken: Vec<Broken>,
}

/// `error_detail` of a NACK: code INVALID_ARGUMENT.
pub(super) fn error_detail(reason: &str) -> rpc::Status {
    let mut end = reason.len().min(REASON_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let message = reason[..end].to_owned();
    rpc::Status { code: tonic::Code::InvalidArgument as i32, message, details: Vec::new() }
}

/// The resource in a wrapper of its own.
fn unwrap(resource_type: ResourceType, wrapper: wire::Resource) -> Result<RemoteResource, Broken> {
    let name = match wrapper.resource_name {
        Some(named) if wrapper.name.is_empty() => named.name,
        _ => wrapper.name,
    };
    if let Some(any) = &wrapper.resource
        && let Err(reason) = check_type(resource_type, &any.type_url)
    {
        return Err(Broken { name: Some(name).filter(|name| !name.is_empty()), reason });
    }
    if wrapper.resource.is_none() && name.is_empty() {
        return Err(Broken { name: None, reason: "an entry with neither name nor resource".to_owned() });
    }
    let ttl = wrapper.ttl.and_then(|ttl| {
        let (seconds, nanos) = (u64::try_from(ttl.seconds).ok()?, u32::try_from(ttl.nanos).ok()?);
        (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
    });
    Ok(RemoteResource {
        name,
        aliases: wrapper.aliases,
        version: wrapper.version,
        ttl: ttl.filter(|ttl| !ttl.is_zero()),
        body: wrapper.resource.map(|any| Body { type_url: any.type_url, value: any.value }),
    })
}

fn check_type(resource_type: ResourceType, type_url: &str) -> Result<(), String> {
    match ResourceType::of(type_url) {
        Some(found) if found == resource_type => Ok(()),
        _ => Err(format!("type URL {type_url:?} does not match {}", resource_type.type_url())),
    }
}

/// The type of a response. On a stream of one type the response need not say.
fn response_type(
    type_url: &str,
    mut carried: impl ExactSizeIterator<Item = ResourceType>,
) -> Result<ResourceType, String> {
    if type_url.is_empty() && carried.len() == 1 {
        return carried.next().ok_or_else(String::new);
    }
    ResourceType::of(type_url).ok_or_else(|| format!("a response of unknown type {type_url:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_cut_between_characters() {
        let detail = error_detail(&"é".repeat(REASON_MAX));
        assert_eq!((detail.code, detail.message.len()), (3, REASON_MAX));
        let detail = error_detail(&format!("x{}", "é".repeat(REASON_MAX)));
        assert_eq!(detail.message.len(), REASON_MAX - 1);
        assert_eq!(error_detail("no").message, "no");
    }
}
