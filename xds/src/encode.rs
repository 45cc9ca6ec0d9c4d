//! Messages in the wire format, from their text form.

use prost::Message as _;

use crate::{
    at::Sink,
    decode::{self, Syntax, UnknownFields},
    descriptor,
};

/// The message of type `name` (`envoy.config.cluster.v3.Cluster`) that `text` (YAML or JSON) describes, as it goes over
/// the wire: for control planes, tools and tests. What it means is not looked at.
///
/// # Errors
/// There is no such type, or the text is not a message of it: unknown fields are errors.
pub fn encode_message(name: &str, text: &str) -> Result<Vec<u8>, String> {
    let descriptor = descriptor::message(name).ok_or_else(|| format!("{name} is not a known message"))?;
    let tree = decode::parse(text, Syntax::Yaml)?;
    let sink = Sink::new(name);
    let message = decode::decode(&sink.root(), &descriptor, &tree, UnknownFields::Refuse);
    let (errors, _) = sink.into_parts();
    match message {
        Some(message) if errors.is_empty() => Ok(message.encode_to_vec()),
        _ => Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;

    use super::*;

    #[test]
    fn text_becomes_the_message() {
        let bytes =
            encode_message("envoy.config.cluster.v3.Cluster", "{name: a, connect_timeout: 1s}").unwrap();
        let cluster = Cluster::decode(bytes.as_slice()).unwrap();
        assert_eq!((cluster.name.as_str(), cluster.connect_timeout.unwrap().seconds), ("a", 1));
    }

    #[test]
    fn what_is_no_such_message_is_refused() {
        for (name, text, word) in [
            ("envoy.config.cluster.v3.Clutter", "{}", "Clutter"),
            ("envoy.config.cluster.v3.Cluster", "{nme: a}", "nme"),
            ("envoy.config.cluster.v3.Cluster", "{name: [", "YAML"),
        ] {
            let error = encode_message(name, text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
