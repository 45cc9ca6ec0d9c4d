//! Polling over HTTP/1.1: a `DiscoveryRequest` as JSON is answered with a `DiscoveryResponse` as JSON.

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prost::{Message as _, bytes::Bytes};
use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::Value as Json;

use super::{
    channel::origin,
    link::{Command, Link},
    protocol::{Incoming, resource},
    types::{Broken, Event, Interest, ResourceType},
    wire,
};
use crate::{
    at::Sink,
    decode::{self, UnknownFields},
    descriptor,
};

/// Largest answer that is read.
const BODY_MAX: usize = 256 << 20;

/// Asks again and again, whether the answer before was accepted or not.
pub(super) struct RestTask {
    link: Link,
    resource_type: ResourceType,
    path: &'static str,
    interest: Arc<Interest>,
    /// `version_info` that was accepted last.
    version: String,
    /// The reason why the answer before was refused, which the next request says.
    refused: Option<String>,
    /// The last answer that was accepted, and to what: the same one again is no news.
    accepted: Option<(Arc<Interest>, Bytes)>,
    /// Whether something has to be sent once more since the request that is under way: what is known of it here is
    /// forgotten by those who ask.
    anew: bool,
    /// Which endpoint of several is asked, when one fails.
    attempts: usize,
}

impl RestTask {
    pub(super) fn new(link: Link, resource_type: ResourceType, path: &'static str) -> Self {
        Self {
            link,
            resource_type,
            path,
            interest: Arc::default(),
            version: String::new(),
            refused: None,
            accepted: None,
            anew: false,
            attempts: 0,
        }
    }

    /// Runs until it is dropped, or nobody can tell it anything any more.
    pub(super) async fn run(mut self) {
        loop {
            while !self.interest.wildcard && self.interest.names.is_empty() {
                if self.command().await.is_none() {
                    return;
                }
            }
            while let Ok(command) = self.link.commands.try_recv() {
                self.take(command);
            }
            let failed = match self.poll().await {
                Ok(true) => None,
                Ok(false) => return,
                Err(error) => Some(error),
            };
            self.link.control_plane.set_connected(failed.is_none());
            if failed.is_none() && self.anew {
                continue;
            }
            if let Some(error) = failed {
                self.attempts = self.attempts.wrapping_add(1);
                self.link.tell(Event::Failed {
                    source: self.link.source.clone(),
                    types: vec![self.resource_type],
                    error,
                });
            }
            // Twice the delay at most, so that clients that started together do not stay together.
            let delay = self.link.api.refresh_delay.max(Duration::from_millis(1));
            let again = tokio::time::Instant::now() + delay.mul_f64(1.0 + fastrand::f64());
            loop {
                tokio::select! {
                    biased;
                    command = self.link.commands.recv() => match command {
                        // What is newly wanted is not made to wait for the next poll.
                        Some(command) => if self.take(command) { break },
                        None => return,
                    },
                    () = tokio::time::sleep_until(again) => break,
                }
            }
        }
    }

    async fn command(&mut self) -> Option<bool> {
        let command = self.link.commands.recv().await?;
        Some(self.take(command))
    }

    /// Whether there is something to ask at once.
    fn take(&mut self, command: Command) -> bool {
        match command {
            Command::Answer(..) => false,
            Command::Renew(..) => {
                self.ask_anew();
                true
            }
            Command::Want(_, interest) => {
                let interest = interest.unwrap_or_default();
                let changed = interest != self.interest;
                let is_more = (interest.wildcard && !self.interest.wildcard)
                    || !interest.names.is_subset(&self.interest.names);
                if is_more {
                    // Also when it went and came back before the server was told.
                    self.ask_anew();
                }
                self.interest = interest;
                changed
            }
        }
    }

    fn ask_anew(&mut self) {
        self.accepted = None;
        self.anew = true;
    }

    /// Asks once, and sees the answer through. `false` when there is nobody left to answer for.
    async fn poll(&mut self) -> Result<bool, String> {
        let interest = self.interest.clone();
        self.anew = false;
        self.link
            .tell(Event::Requested { source: self.link.source.clone(), resource_type: self.resource_type });
        let fetch = self.fetch(self.request(&interest)?);
        let timeout = self.link.api.request_timeout;
        let answer = match tokio::time::timeout(timeout, fetch).await {
            Ok(answer) => answer?,
            Err(_) => return Err(format!("no answer within {timeout:?}")),
        };
        let Some(body) = answer else { return Ok(true) };
        if self.accepted.as_ref().is_some_and(|(asked, known)| *asked == interest && *known == body) {
            return Ok(true);
        }
        let (incoming, identifier) = parse(self.resource_type, &body)?;
        if let Some(identifier) = identifier {
            self.link.control_plane.identify(&identifier);
        }
        let version = incoming.version.clone();
        let id = self.link.next_id();
        self.link.deliver(id, incoming);
        let result = loop {
            match self.link.commands.recv().await {
                None => return Ok(false),
                Some(Command::Answer(answered, result)) if answered == id => break result,
                Some(command) => {
                    self.take(command);
                }
            }
        };
        self.refused = result.err();
        if self.refused.is_some() {
            // What was right with it was applied: a server that goes back to the version before has to send it.
            self.accepted = None;
        } else {
            self.version = version;
            self.accepted = Some((interest, body)).filter(|_| !self.anew);
        }
        Ok(true)
    }

    fn request(&self, interest: &Interest) -> Result<Bytes, String> {
        // A server that is told its latest version sees nothing to say about names that are newly wanted.
        let is_covered = self.accepted.is_some();
        let request = DiscoveryRequest {
            version_info: if is_covered { self.version.clone() } else { String::new() },
            node: Some((*self.link.node).clone()),
            resource_names: interest.names.iter().cloned().collect(),
            type_url: self.resource_type.type_url(),
            error_detail: self.refused.as_deref().map(super::protocol::error_detail),
            ..DiscoveryRequest::default()
        };
        let descriptor = descriptor::message("envoy.service.discovery.v3.DiscoveryRequest");
        let message = descriptor
            .and_then(|descriptor| {
                DynamicMessage::decode(descriptor, request.encode_to_vec().as_slice()).ok()
            })
            .ok_or("the request cannot be written")?;
        let mut json = Vec::new();
        let mut serializer = serde_json::Serializer::new(&mut json);
        let options = SerializeOptions::new().use_proto_field_name(true);
        message
            .serialize_with_options(&mut serializer, &options)
            .map_err(|error| format!("the request cannot be written: {error}"))?;
        Ok(json.into())
    }

    /// The body of the answer; `None` when nothing has changed.
    async fn fetch(&self, body: Bytes) -> Result<Option<Bytes>, String> {
        let services = &self.link.api.services;
        let service =
            services.get(self.attempts % services.len().max(1)).ok_or("no cluster is configured")?;
        let dialer = self.link.channels.dialer();
        let settings = dialer.settings(&service.cluster).unwrap_or_default();
        let stream = dialer.connect(&service.cluster).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(report)?;
        let uri = origin(settings.tls, &service.cluster);
        let host = uri.authority().map_or("cluster", |authority| authority.as_str());
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.path)
            .header(header::HOST, host)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let exchange = async move {
            let response = sender.send_request(request).await.map_err(report)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_MAX);
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok::<_, String>((status, body))
        };
        // The connection is driven by whoever waits for the exchange, and goes with it.
        tokio::pin!(exchange, connection);
        let (status, body) = tokio::select! {
            done = &mut exchange => done?,
            ended = &mut connection => {
                ended.map_err(report)?;
                exchange.await?
            }
        };
        match status {
            StatusCode::OK => Ok(Some(body)),
            StatusCode::NOT_MODIFIED => Ok(None),
            status => Err(format!("HTTP status {status}")),
        }
    }
}

fn report(error: hyper::Error) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Reads a `DiscoveryResponse`. Its resources are read one by one, so that one that is wrong leaves the others be.
fn parse(resource_type: ResourceType, body: &[u8]) -> Result<(Incoming, Option<String>), String> {
    let mut tree: Json = serde_json::from_slice(body).map_err(|error| format!("not JSON: {error}"))?;
    let entries = match tree.get_mut("resources").map(Json::take) {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Array(entries)) => entries,
        Some(_) => return Err("resources: expected a list".to_owned()),
    };
    let rest = read("envoy.service.discovery.v3.DiscoveryResponse", &tree)?;
    let rest = wire::DiscoveryResponse::decode(decode::canonical(&rest).as_slice())
        .map_err(|error| error.to_string())?;
    if !rest.type_url.is_empty() && ResourceType::of(&rest.type_url) != Some(resource_type) {
        return Err(format!("type URL {:?} does not match {}", rest.type_url, resource_type.type_url()));
    }
    let mut resources = Vec::with_capacity(entries.len());
    let mut broken = Vec::new();
    for entry in entries {
        match any(&entry).and_then(|any| resource(resource_type, any)) {
            Ok(resource) => resources.push(resource),
            Err(reason) => broken.push(reason),
        }
    }
    let incoming = Incoming {
        resource_type,
        version: rest.version_info,
        full: resource_type.is_full_state(),
        resources,
        removed: Vec::new(),
        broken,
    };
    Ok((incoming, rest.control_plane.map(|control_plane| control_plane.identifier)))
}

fn any(entry: &Json) -> Result<wire::Any, Broken> {
    let name = ["name", "cluster_name", "clusterName"].iter().find_map(|field| entry.get(field)?.as_str());
    let broken = |reason| Broken { name: name.map(str::to_owned), reason };
    let any = read("google.protobuf.Any", entry).map_err(broken)?;
    wire::Any::decode(Bytes::from(decode::canonical(&any))).map_err(|error| broken(error.to_string()))
}

fn read(message: &str, tree: &Json) -> Result<DynamicMessage, String> {
    let descriptor = descriptor::message(message).ok_or_else(|| format!("{message} is not known"))?;
    let sink = Sink::new(message);
    let read = decode::decode(&sink.root(), &descriptor, tree, UnknownFields::Note);
    let (errors, notes) = sink.into_parts();
    for note in notes {
        log::debug!("REST: {note}");
    }
    match read {
        Some(read) if errors.is_empty() => Ok(read),
        _ => Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
    }
}
