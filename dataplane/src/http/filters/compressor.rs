//! `envoy.filters.http.compressor`: responses made smaller for clients that can undo it.

use std::{io::Write as _, sync::Arc};

use culvert_model::{Compressor, CompressorLibrary, CompressorOverride};
use culvert_proto::{Headers, Version, filter::Settings, h1::Framing, route::string_matches};

use super::{Filter, Response, Scope, State, Verdict};
use crate::{
    http::{codec::Encoder, exchange::Exchange},
    listener::is_enabled,
    observe::stats::{CompressorStats, EncodingStats, Registry, RequestCompressorStats},
};

/// What is compressed where the configuration names no types; Envoy's list.
const TYPES: [&str; 18] = [
    "application/ecmascript",
    "application/javascript",
    "application/json",
    "application/x-javascript",
    "application/x-json",
    "application/xhtml+xml",
    "application/xml",
    "image/svg+xml",
    "text/css",
    "text/ecmascript",
    "text/html",
    "text/javascript",
    "text/js",
    "text/jscript",
    "text/plain",
    "text/x-javascript",
    "text/x-js",
    "text/xml",
];

/// The filter on one worker.
pub(super) struct ResponseCompressor {
    config: Arc<Compressor>,
    stats: Arc<CompressorStats>,
    choices: Arc<EncodingStats>,
    requests: Arc<RequestCompressorStats>,
}

/// Which encoding a client gets, and why.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Choice {
    /// That of the filter with this place in the list of those that could.
    Filter(usize),
    /// That of the first one: the client takes any.
    Any,
    /// None, as the client asks.
    Identity,
    /// None: the client's list makes no sense.
    Invalid,
}

impl ResponseCompressor {
    pub(super) fn new(config: Arc<Compressor>, stat_prefix: &str, registry: &Registry) -> Self {
        let stats = Arc::new(CompressorStats::default());
        let kind = match &config.library {
            CompressorLibrary::Brotli { .. } => "brotli",
            CompressorLibrary::Gzip { .. } => "gzip",
            CompressorLibrary::Zstd { .. } => "zstd",
        };
        let name = &config.library_name;
        let scope = format!("http.{stat_prefix}.compressor.{name}.{kind}");
        let direction = if config.directed { format!("{scope}.response") } else { scope.clone() };
        registry.register(direction, stats.clone());
        let choices = Arc::new(EncodingStats::default());
        let requests = Arc::new(RequestCompressorStats::default());
        registry.register(format!("{scope}.request"), requests.clone());
        registry.register(scope, choices.clone());
        Self { config, stats, choices, requests }
    }

    pub(super) fn decode(
        &self,
        exchange: &mut Exchange<'_>,
        scope: &Scope<'_>,
        state: &mut State,
    ) -> Verdict {
        let own = match scope.settings() {
            Some(Settings::Compressor(own)) => Some(own),
            _ => None,
        };
        if own.is_some_and(|own: &CompressorOverride| own.disabled) {
            return Verdict::Continue;
        }
        self.requests.not_compressed.inc();
        if !is_enabled(&self.config.enabled, &exchange.conn.worker) {
            return Verdict::Continue;
        }
        let headers = &mut exchange.head.headers;
        let accepted = headers.joined("accept-encoding").map(|list| list.to_vec().into_boxed_slice());
        *state = State::Compressing(accepted);
        if own.and_then(|own| own.remove_accept).unwrap_or(self.config.remove_accept) {
            headers.remove("accept-encoding");
        }
        Verdict::Continue
    }

    pub(super) fn encode(&self, exchange: &Exchange<'_>, state: &State, response: &mut Response<'_>) {
        let State::Compressing(accepted) = state else { return };
        let config = &*self.config;
        let headers = &mut *response.headers;
        let length = match (headers.get("content-length"), response.framing) {
            (Some(length), _) => std::str::from_utf8(length).ok().and_then(|length| length.parse().ok()),
            (None, Framing::Length(length)) => Some(length),
            (None, _) => None,
        };
        let long = length.is_none_or(|length| length >= config.min_length);
        if !long {
            self.stats.content_length_too_small.inc();
        }
        let fits = long
            && self.takes_type(headers)
            && response.status != 101
            && !config.uncompressible.contains(&response.status)
            && !has_word(headers, "cache-control", "no-transform")
            && !headers.contains("content-encoding");
        let tagged = fits && config.disable_on_etag && headers.contains("etag");
        if tagged {
            self.choices.not_compressed_etag.inc();
        }
        let compressible = fits && !tagged;
        // What ends with its connection would have to be told apart from what is cut short.
        let tunnel = response.framing == Framing::Tunnel;
        let has_body =
            !response.framing.is_empty() && !tunnel && exchange.downstream_version != Version::Http10;
        if has_body && long && self.is_chosen(exchange, accepted.as_deref(), headers) && compressible {
            self.stats.compressed.inc();
            headers.set("content-encoding", config.library.encoding());
            headers.remove("content-length");
            weaken(headers, config.weaken_etag);
            if let Some(encoder) = Compressing::new(&config.library, self.stats.clone()) {
                exchange.stream.encode_with(Box::new(encoder));
            }
        } else {
            self.stats.not_compressed.inc();
        }
        if compressible && !has_word(headers, "vary", "accept-encoding") {
            let vary = headers.joined("vary").map(|known| [&known[..], b", Accept-Encoding"].concat());
            headers.set("vary", vary.as_deref().unwrap_or(b"Accept-Encoding"));
        }
    }

    fn takes_type(&self, headers: &Headers) -> bool {
        let Some(kind) = headers.get("content-type").filter(|kind| !kind.is_empty()) else { return true };
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let config = &*self.config;
        if config.content_matchers.iter().any(|matcher| string_matches(matcher, kind)) {
            return true;
        }
        let is_it = |known: &str| kind.eq_ignore_ascii_case(known.as_bytes());
        match config.content_types.as_slice() {
            [] if config.content_matchers.is_empty() => TYPES.iter().any(|known| is_it(known)),
            list => list.iter().any(|known| is_it(known)),
        }
    }

    /// Whether the client gets the encoding of this filter.
    fn is_chosen(&self, exchange: &Exchange<'_>, accepted: Option<&[u8]>, response: &Headers) -> bool {
        let Some(accepted) = accepted else {
            self.choices.no_accept_header.inc();
            return false;
        };
        let chain = &exchange.conn.manager.filters;
        let mut own = None;
        let mut encodings = smallvec::SmallVec::<[&str; 4]>::new();
        for (entry, state) in chain.entries.iter().zip(&exchange.filters.states) {
            let (filter, state) = match state {
                State::Discovered(discovered) => (&*discovered.0, &discovered.1),
                state => (&entry.filter, state),
            };
            if let (Filter::Compressor(filter), State::Compressing(_)) = (filter, state) {
                if !filter.takes_type(response) {
                    continue;
                }
                if std::ptr::eq(filter, self) {
                    own = Some(encodings.len());
                }
                encodings.push(filter.config.library.encoding());
            }
        }
        let choice = choose(accepted, &encodings, self.config.choose_first);
        let counter = match choice {
            Choice::Filter(index) if Some(index) == own => &self.choices.header_compressor_used,
            Choice::Filter(_) => &self.choices.header_compressor_overshadowed,
            Choice::Any => &self.choices.header_wildcard,
            Choice::Identity => &self.choices.header_identity,
            Choice::Invalid => &self.choices.header_not_valid,
        };
        counter.inc();
        match choice {
            Choice::Filter(index) => Some(index) == own,
            Choice::Any => own == Some(0),
            Choice::Identity | Choice::Invalid => false,
        }
    }
}

/// What the client likes best of what there is; what it names first counts among equals. Names are told apart by case, as
/// Envoy does.
fn choose(accepted: &[u8], encodings: &[&str], first: bool) -> Choice {
    let mut best = (Choice::Invalid, 0.0);
    for entry in accepted.split(|byte| *byte == b',') {
        let mut parts = entry.split(|byte| *byte == b';');
        let name = parts.next().unwrap_or_default().trim_ascii();
        let quality = parts
            .filter_map(|part| {
                part.trim_ascii().strip_prefix(b"q=").or_else(|| part.trim_ascii().strip_prefix(b"Q="))
            })
            .next()
            .map_or(Some(1.0), |text| std::str::from_utf8(text).ok()?.trim().parse::<f32>().ok());
        let quality = quality.filter(|quality| (0.0..=1.0).contains(quality)).unwrap_or(0.0);
        let place = encodings.iter().position(|known| name == known.as_bytes());
        let choice = match (place, name) {
            (Some(place), _) => Choice::Filter(place),
            (None, b"*") => Choice::Any,
            (None, b"identity") => Choice::Identity,
            (None, _) => continue,
        };
        let earlier = match (choice, best.0) {
            (Choice::Filter(place), Choice::Filter(known)) => first && place < known,
            _ => false,
        };
        if quality > best.1 || quality == best.1 && quality > 0.0 && earlier {
            best = (choice, quality);
        }
    }
    best.0
}

/// A strong tag is one of other bytes than those that leave (RFC 9110 section 8.8.1).
fn weaken(headers: &mut Headers, keep: bool) {
    let Some(tag) = headers.get("etag") else { return };
    if tag.starts_with(b"W/") || tag.starts_with(b"w/") {
        return;
    }
    if keep {
        let weak = [b"W/", tag].concat();
        headers.set("etag", weak);
    } else {
        headers.remove("etag");
    }
}

/// Whether a header that is a list has a word.
fn has_word(headers: &Headers, name: &str, word: &str) -> bool {
    headers.get_all(name).any(|value| {
        let mut words = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        words.any(|known| known.eq_ignore_ascii_case(word.as_bytes()))
    })
}

/// The body of a response on its way.
struct Compressing {
    /// `None` once it has failed, which memory does not.
    library: Option<Library>,
    stats: Arc<CompressorStats>,
}

enum Library {
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

/// How much brotli collects at once, in bytes.
const BROTLI_BUFFER: usize = 4_096;

impl Compressing {
    fn new(library: &CompressorLibrary, stats: Arc<CompressorStats>) -> Option<Self> {
        let library = match library {
            CompressorLibrary::Brotli { quality, window_bits } => {
                let made = brotli::CompressorWriter::new(Vec::new(), BROTLI_BUFFER, *quality, *window_bits);
                Library::Brotli(Box::new(made))
            }
            CompressorLibrary::Gzip { level } => {
                Library::Gzip(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(*level)))
            }
            CompressorLibrary::Zstd { level, checksum } => {
                let level = i32::try_from(*level).unwrap_or_default();
                let mut made = zstd::stream::write::Encoder::new(Vec::new(), level).ok()?;
                made.include_checksum(*checksum).ok()?;
                Library::Zstd(made)
            }
        };
        Some(Self { library: Some(library), stats })
    }
}

impl Encoder for Compressing {
    fn encode(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.stats.total_uncompressed_bytes.add(bytes.len() as u64);
        // Writing to memory cannot fail.
        let encoded = match &mut self.library {
            Some(Library::Brotli(it)) => {
                let _ = it.write_all(bytes).and_then(|()| it.flush());
                std::mem::take(it.get_mut())
            }
            Some(Library::Gzip(it)) => {
                let _ = it.write_all(bytes).and_then(|()| it.flush());
                std::mem::take(it.get_mut())
            }
            Some(Library::Zstd(it)) => {
                let _ = it.write_all(bytes).and_then(|()| it.flush());
                std::mem::take(it.get_mut())
            }
            None => Vec::new(),
        };
        self.stats.total_compressed_bytes.add(encoded.len() as u64);
        encoded
    }

    fn finish(&mut self, _: Option<&Headers>) -> Vec<u8> {
        let rest = match self.library.take() {
            Some(Library::Brotli(it)) => it.into_inner(),
            Some(Library::Gzip(it)) => it.finish().unwrap_or_default(),
            Some(Library::Zstd(it)) => it.finish().unwrap_or_default(),
            None => Vec::new(),
        };
        self.stats.total_compressed_bytes.add(rest.len() as u64);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_likes_best() {
        let both = ["gzip", "br"];
        for (accepted, first, expected) in [
            ("gzip", false, Choice::Filter(0)),
            ("br, gzip", false, Choice::Filter(1)),
            ("br, gzip", true, Choice::Filter(0)),
            ("br;q=0.5, gzip;q=0.4", true, Choice::Filter(1)),
            ("GZIP, gzip;Q=0.1, deflate", false, Choice::Filter(0)),
            ("gzip;q=0.2, identity", false, Choice::Identity),
            ("gzip;q=0.2, *", false, Choice::Any),
            ("gzip;q=0, *;q=0", false, Choice::Invalid),
            ("deflate", false, Choice::Invalid),
            ("gzip;q=x", false, Choice::Invalid),
            ("", false, Choice::Invalid),
        ] {
            assert_eq!(choose(accepted.as_bytes(), &both, first), expected, "{accepted}");
        }
    }
}
