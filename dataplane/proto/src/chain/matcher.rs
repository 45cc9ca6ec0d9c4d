//! What `filter_chain_matcher` looks at.

use std::{borrow::Cow, net::IpAddr};

use culvert_model::ConnectionInput;

use super::Facts;
use crate::tree::{Inputs, Value};

impl Inputs for Facts<'_> {
    fn value(&self, input: &ConnectionInput) -> Value<'_> {
        let text = |text: Option<String>| text.map_or(Value::Nothing, |text| Value::Text(Cow::Owned(text)));
        match input {
            ConnectionInput::ApplicationProtocol
            | ConnectionInput::ServerName
            | ConnectionInput::TransportProtocol => {
                let Some(opening) = self.opening else { return Value::Unknown };
                match input {
                    ConnectionInput::ServerName if opening.server_name.is_empty() => Value::Nothing,
                    ConnectionInput::ServerName => Value::Text(Cow::Borrowed(&opening.server_name)),
                    ConnectionInput::TransportProtocol => {
                        Value::Text(Cow::Borrowed(if opening.tls { "tls" } else { "raw_buffer" }))
                    }
                    _ if opening.protocols.is_empty() => Value::Nothing,
                    _ => {
                        let quoted: Vec<_> = opening.protocols.iter().map(|it| format!("'{it}'")).collect();
                        text(Some(quoted.join(",")))
                    }
                }
            }
            ConnectionInput::DestinationPort => text(self.destination.map(|it| it.port().to_string())),
            ConnectionInput::SourcePort => text(self.source.map(|it| it.port().to_string())),
            ConnectionInput::SourceType if self.is_local() => Value::Text(Cow::Borrowed("local")),
            ConnectionInput::SourceType => Value::Nothing,
            ConnectionInput::DestinationIp | ConnectionInput::DirectSourceIp | ConnectionInput::SourceIp => {
                text(self.address(input).map(|ip| ip.to_string()))
            }
            // Known of connections that have a chain already.
            ConnectionInput::DnsSan
            | ConnectionInput::FilterState(_)
            | ConnectionInput::RequestHeader(_)
            | ConnectionInput::Subject
            | ConnectionInput::UriSan => Value::Nothing,
        }
    }

    fn address(&self, input: &ConnectionInput) -> Option<IpAddr> {
        let address = match input {
            ConnectionInput::DestinationIp => self.destination,
            ConnectionInput::DirectSourceIp => self.direct_source,
            ConnectionInput::SourceIp => self.source,
            _ => None,
        };
        address.map(|address| address.ip())
    }
}
