//! What the substitutions of header values stand for.

use std::rc::Rc;

use culvert_model::FormatPart;
use culvert_proto::{Headers, route::Formatter};

use crate::{
    http::{exchange::Exchange, log::Held},
    observe::access::{self, LogType},
    upstream::Host,
};

/// The values of one request.
pub(super) struct Values<'e> {
    exchange: &'e Exchange<'e>,
    host: Option<&'e Rc<Host>>,
    changing: Changing,
}

/// Whose headers are being changed with the values.
#[derive(Clone, Copy)]
enum Changing {
    Request,
    Response,
}

impl<'e> Values<'e> {
    /// Values for changes of the request, whose own headers are passed with each value.
    pub(super) fn for_request(exchange: &'e Exchange<'_>, host: &'e Rc<Host>) -> Self {
        Self { exchange, host: Some(host), changing: Changing::Request }
    }

    /// Values for changes of the request before it has a host.
    pub(super) fn for_filter(exchange: &'e Exchange<'_>) -> Self {
        Self { exchange, host: None, changing: Changing::Request }
    }

    /// Values for changes of the response; `host` once one is chosen.
    pub(super) fn for_response(exchange: &'e Exchange<'_>, host: Option<&'e Rc<Host>>) -> Self {
        Self { exchange, host, changing: Changing::Response }
    }
}

impl Formatter for Values<'_> {
    fn write(&self, part: &FormatPart, headers: &Headers, out: &mut Vec<u8>) {
        let held = match self.changing {
            Changing::Request => Held { request: Some(headers), response: None },
            Changing::Response => Held { request: None, response: Some(headers) },
        };
        self.exchange.with_facts(LogType::DownstreamEnd, self.host, held, |facts| {
            access::append(part, facts, out);
        });
    }
}
