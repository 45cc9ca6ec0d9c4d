//! Answers that culvert gives itself.

use std::{borrow::Cow, sync::Arc};

use culvert_proto::{Headers, ResponseHead, h1::push_decimal};
use culvert_ring::Chunk;

use crate::http::{grpc, log::Flags};

/// A local reply.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) flags: Flags,
    /// `%RESPONSE_CODE_DETAILS%`
    pub(super) details: &'static str,
    body: Body,
    /// The connection ends with it.
    pub(super) closes: bool,
    rare: Option<Box<Rare>>,
}

/// What few replies have.
#[derive(Default)]
struct Rare {
    /// The details, where they are made for the request.
    details_text: Option<String>,
    location: Option<Vec<u8>>,
    header: Option<(&'static str, &'static str)>,
    grpc_status: Option<Cow<'static, str>>,
    /// What a filter wants the client to be told besides; it has the last word.
    headers: Option<Headers>,
}

enum Body {
    Shared(Arc<[u8]>),
    Text(&'static str),
}

impl Reply {
    /// A reply with a text body, which may be empty.
    pub(super) fn new(status: u16, text: &'static str) -> Self {
        Self {
            status,
            flags: Flags::default(),
            details: "",
            body: Body::Text(text),
            closes: false,
            rare: None,
        }
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn location_field(&self) -> Option<&[u8]> {
        self.rare.as_ref()?.location.as_deref()
    }

    fn header_field(&self) -> Option<(&'static str, &'static str)> {
        self.rare.as_ref()?.header
    }

    fn own_headers(&self) -> Option<&Headers> {
        self.rare.as_ref()?.headers.as_ref()
    }

    /// [`Reply::details`], where they were made for the request.
    pub(super) fn own_details(&self) -> Option<&str> {
        self.rare.as_ref()?.details_text.as_deref()
    }

    pub(super) fn flag(mut self, flags: Flags) -> Self {
        self.flags = flags;
        self
    }

    pub(super) fn details(mut self, details: &'static str) -> Self {
        self.details = details;
        self
    }

    /// Details that are made for the request.
    pub(super) fn details_text(mut self, details: String) -> Self {
        self.rare().details_text = Some(details);
        self
    }

    pub(super) fn body(mut self, body: Arc<[u8]>) -> Self {
        self.body = Body::Shared(body);
        self
    }

    pub(super) fn location(mut self, location: Vec<u8>) -> Self {
        self.rare().location = Some(location);
        self
    }

    /// What a gRPC client is told instead of what the status says.
    pub(super) fn grpc_status(mut self, status: impl Into<Cow<'static, str>>) -> Self {
        self.rare().grpc_status = Some(status.into());
        self
    }

    /// Headers that take the place of what the reply would have of that name.
    pub(super) fn headers(mut self, headers: Headers) -> Self {
        if !headers.is_empty() {
            self.rare().headers = Some(headers);
        }
        self
    }

    /// Ends the connection.
    pub(super) fn closing(mut self) -> Self {
        self.closes = true;
        self
    }

    /// Adds `x-envoy-overloaded: true`.
    pub(super) fn overloaded(self) -> Self {
        self.header("x-envoy-overloaded", "true")
    }

    /// Adds a field.
    pub(super) fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.rare().header = Some((name, value));
        self
    }

    /// Writes status and fields, those of the body excepted.
    pub(super) fn write_head(&self, head: &mut ResponseHead) {
        head.set_status(self.status);
        if let Some(location) = self.location_field() {
            head.headers.push("location", location);
        }
        if let Some((name, value)) = self.header_field() {
            head.headers.push(name, value);
        }
        if let Some(headers) = self.own_headers() {
            for (name, _) in headers {
                head.headers.remove(name);
            }
            for (name, value) in headers {
                head.headers.push(name, value);
            }
        }
    }

    /// Writes it for a gRPC client: a head alone, whose status is in its fields.
    pub(super) fn write_grpc_head(&self, head: &mut ResponseHead) {
        head.set_status(200);
        let own_status = self.rare.as_ref().and_then(|rare| rare.grpc_status.as_deref());
        head.headers.push("content-type", "application/grpc");
        head.headers.push("grpc-status", own_status.unwrap_or_else(|| grpc::status_of(self.status)));
        let text = match &self.body {
            Body::Shared(body) => body,
            Body::Text(text) => text.as_bytes(),
        };
        if !text.is_empty() {
            head.headers.push("grpc-message", grpc::message(text));
        }
        if let Some(location) = self.location_field() {
            head.headers.push("location", location);
        }
        if let Some((name, value)) = self.header_field() {
            head.headers.push(name, value);
        }
        if let Some(headers) = self.own_headers() {
            for (name, value) in headers {
                if !head.headers.contains(name) {
                    head.headers.push(name, value);
                }
            }
        }
    }

    /// Says what the body is, unless the configuration did, and how long, where no body shows that.
    pub(super) fn write_body_fields(&self, head: &mut ResponseHead, head_only: bool) {
        let len = match &self.body {
            Body::Shared(body) => body.len(),
            Body::Text(text) => text.len(),
        };
        if len == 0 {
            return;
        }
        if !head.headers.contains("content-type") {
            head.headers.push("content-type", "text/plain");
        }
        if head_only {
            let mut digits = Vec::with_capacity(8);
            push_decimal(len as u64, &mut digits);
            head.headers.set("content-length", digits);
        }
    }

    pub(super) fn into_body(self) -> Chunk {
        match self.body {
            Body::Shared(body) => Chunk::Vec(body.to_vec()),
            Body::Text(text) => Chunk::Static(text.as_bytes()),
        }
    }
}
