//! What the service decided, and what that changes.

use culvert_model::{Struct, Value};
use culvert_proto::{Headers, h1::is_field, route::string_matches};
use envoy_types::pb::envoy::{
    config::core::v3::{HeaderValueOption, header_value_option::HeaderAppendAction},
    service::auth::v3::{CheckResponse, check_response::HttpResponse},
};

use crate::http::{callout::Answer, metadata};

/// A decision.
pub(super) enum Decision {
    Allowed(Box<Changes>),
    Denied(Box<Denial>),
    /// There is none: the service failed, or answered with what cannot be used.
    Error,
}

/// What is changed of a request that may go on, and of its response.
#[derive(Default)]
pub(in crate::http::filters) struct Changes {
    /// In place of what there is.
    set: Pairs,
    /// Besides what there is.
    add: Pairs,
    /// Joined to what there is, if there is anything.
    append: Pairs,
    remove: Vec<String>,
    pub(super) query_set: Vec<(String, String)>,
    pub(super) query_remove: Vec<String>,
    pub(super) response: Vec<(How, String, Vec<u8>)>,
    pub(super) metadata: Struct,
}

/// What a client is told whose request does not go on.
pub(super) struct Denial {
    pub(super) status: u16,
    pub(super) set: Pairs,
    pub(super) append: Pairs,
    pub(super) body: Vec<u8>,
    pub(super) metadata: Struct,
}

pub(super) type Pairs = Vec<(String, Vec<u8>)>;

/// How a header of the response is changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum How {
    Add,
    AddIfAbsent,
    Overwrite,
    Set,
}

impl Changes {
    /// Whether the request is another one with them.
    pub(super) fn touch_request(&self) -> bool {
        !(self.set.is_empty()
            && self.add.is_empty()
            && self.append.is_empty()
            && self.remove.is_empty()
            && self.query_set.is_empty()
            && self.query_remove.is_empty())
    }

    /// Changes the fields of a request.
    pub(super) fn apply(&self, headers: &mut Headers) {
        for (name, value) in &self.set {
            headers.set(name, value);
        }
        for (name, value) in &self.add {
            headers.push(name, value);
        }
        for (name, value) in &self.append {
            if headers.contains(name) {
                let joined = headers.joined(name).map(|known| [&known[..], b",", value].concat());
                headers.set(name, joined.as_deref().unwrap_or(value));
            }
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }

    /// Changes the fields of a response.
    pub(super) fn apply_to_response(&self, headers: &mut Headers) {
        for (how, name, value) in &self.response {
            match how {
                How::Add => headers.push(name, value),
                How::AddIfAbsent if !headers.contains(name) => headers.push(name, value),
                How::Overwrite if headers.contains(name) => headers.set(name, value),
                How::Set => headers.set(name, value),
                How::AddIfAbsent | How::Overwrite => {}
            }
        }
    }
}

impl Decision {
    /// What an answer over gRPC says.
    pub(super) fn of_grpc(response: CheckResponse) -> Self {
        let values = response.dynamic_metadata.as_ref().map(metadata::from_proto).unwrap_or_default();
        let code = response.status.as_ref().map_or(0, |status| status.code);
        let decided = match (code, response.http_response) {
            (0, Some(HttpResponse::OkResponse(ok))) => {
                let (Some((set, append)), Some(answer)) =
                    (fields(&ok.headers), response_fields(&ok.response_headers_to_add))
                else {
                    return Self::Error;
                };
                Some(Self::Allowed(Box::new(Changes {
                    set,
                    append,
                    remove: removable(ok.headers_to_remove.iter().map(String::as_str)),
                    query_set: ok.query_parameters_to_set.into_iter().map(|it| (it.key, it.value)).collect(),
                    query_remove: ok.query_parameters_to_remove,
                    response: answer,
                    metadata: values.clone(),
                    ..Changes::default()
                })))
            }
            (0, _) => {
                Some(Self::Allowed(Box::new(Changes { metadata: values.clone(), ..Changes::default() })))
            }
            (_, Some(HttpResponse::DeniedResponse(denied))) => {
                let Some((set, append)) = fields(&denied.headers) else { return Self::Error };
                let status = denied.status.as_ref().and_then(|status| u16::try_from(status.code).ok());
                Some(Self::Denied(Box::new(Denial {
                    status: status.filter(|status| (200..600).contains(status)).unwrap_or(403),
                    set,
                    append,
                    body: denied.body.into_bytes(),
                    metadata: values.clone(),
                })))
            }
            (_, _) => None,
        };
        decided.unwrap_or_else(|| {
            let (set, append, body) = Default::default();
            Self::Denied(Box::new(Denial { status: 403, set, append, body, metadata: values }))
        })
    }

    /// What an answer over HTTP says.
    pub(super) fn of_http(answer: Answer, service: &culvert_model::HttpAuth) -> Self {
        let any = |list: &[culvert_model::StringMatcher], name: &[u8]| {
            list.iter().any(|matcher| string_matches(matcher, name))
        };
        let pairs = |wanted: &dyn Fn(&[u8]) -> bool| -> Pairs {
            let fields = answer.headers.iter().filter(|(name, _)| wanted(name));
            fields
                .filter_map(|(name, value)| {
                    Some((std::str::from_utf8(name).ok()?.to_owned(), value.to_vec()))
                })
                .collect()
        };
        let values = pairs(&|name| any(&service.metadata_headers, name));
        let values = values
            .into_iter()
            .map(|(name, value)| (name, Value::String(String::from_utf8_lossy(&value).into_owned().into())));
        let metadata: Struct = values.collect();
        if answer.status >= 500 {
            return Self::Error;
        }
        if answer.status == 200 {
            let removed = answer.headers.get("x-envoy-auth-headers-to-remove").unwrap_or_default();
            let removed = std::str::from_utf8(removed).unwrap_or_default();
            let response = pairs(&|name| any(&service.client_success, name));
            return Self::Allowed(Box::new(Changes {
                set: pairs(&|name| any(&service.upstream_headers, name)),
                add: pairs(&|name| any(&service.upstream_append, name)),
                remove: removable(removed.split(',').map(str::trim).filter(|name| !name.is_empty())),
                response: response.into_iter().map(|(name, value)| (How::Add, name, value)).collect(),
                metadata,
                ..Changes::default()
            }));
        }
        let set = pairs(&|name| {
            // Framing is the business of who sends it, and so is what the connection to the service is about.
            if UNFIT.iter().any(|unfit| unfit.as_bytes() == name) {
                return false;
            }
            match service.client_headers.as_slice() {
                [] => true,
                list => any(list, name) || TOLD.iter().any(|told| told.as_bytes() == name),
            }
        });
        Self::Denied(Box::new(Denial {
            status: answer.status,
            set,
            append: Vec::new(),
            body: answer.body,
            metadata,
        }))
    }
}

/// Headers of denials that clients see in any case.
const TOLD: [&str; 2] = ["www-authenticate", "location"];

const UNFIT: [&str; 7] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// Those to set and those to append. `None` when one is no header.
#[expect(deprecated, reason = "services go on using `append`")]
fn fields(options: &[HeaderValueOption]) -> Option<(Pairs, Pairs)> {
    let (mut set, mut append) = (Pairs::new(), Pairs::new());
    for option in options {
        let Some((name, value)) = field(option)? else { continue };
        let to_append = option.append.as_ref().is_some_and(|append| append.value);
        if to_append { &mut append } else { &mut set }.push((name, value));
    }
    Some((set, append))
}

#[expect(deprecated, reason = "services go on using `append`")]
fn response_fields(options: &[HeaderValueOption]) -> Option<Vec<(How, String, Vec<u8>)>> {
    let mut fields = Vec::new();
    for option in options {
        let Some((name, value)) = field(option)? else { continue };
        let how = match (&option.append, option.append_action()) {
            (Some(append), _) if append.value => How::Add,
            (Some(_), _) => How::Set,
            (None, HeaderAppendAction::AppendIfExistsOrAdd) => How::Add,
            (None, HeaderAppendAction::AddIfAbsent) => How::AddIfAbsent,
            (None, HeaderAppendAction::OverwriteIfExists) => How::Overwrite,
            (None, HeaderAppendAction::OverwriteIfExistsOrAdd) => How::Set,
        };
        fields.push((how, name, value));
    }
    Some(fields)
}

/// A header; the inner `None` for one that nobody may set this way.
fn field(option: &HeaderValueOption) -> Option<Option<(String, Vec<u8>)>> {
    let Some(header) = &option.header else { return Some(None) };
    let name = header.key.to_ascii_lowercase();
    if name.starts_with(':') || name == "host" {
        return Some(None);
    }
    let value = match header.raw_value.as_slice() {
        [] => header.value.as_bytes(),
        raw => raw,
    };
    if !is_field(name.as_bytes(), value) {
        log::debug!(target: "ext_authz", "the service answered with a header that is none: {name:?}");
        return None;
    }
    Some(Some((name, value.to_vec())))
}

fn removable<'n>(names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let lower = names.map(str::to_ascii_lowercase);
    lower.filter(|name| !name.starts_with(':') && name != "host").collect()
}

/// `path` with parameters of its query set and removed; what cannot be in a path is escaped.
pub(super) fn edit_query(path: &[u8], set: &[(String, String)], remove: &[String]) -> Vec<u8> {
    let (base, query) = match path.iter().position(|byte| *byte == b'?') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (path, &b""[..]),
    };
    let key = |pair: &[u8]| pair.split(|byte| *byte == b'=').next().unwrap_or_default().to_vec();
    let replaced = |name: &[u8]| set.iter().any(|(key, _)| key.as_bytes() == name);
    let removed = |name: &[u8]| remove.iter().any(|key| key.as_bytes() == name);
    let known = query.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
    let mut pairs: Vec<Vec<u8>> =
        known.filter(|pair| !replaced(&key(pair)) && !removed(&key(pair))).map(<[u8]>::to_vec).collect();
    for (name, value) in set.iter().filter(|(name, _)| !removed(name.as_bytes())) {
        pairs.push([escaped(name), b"=".to_vec(), escaped(value)].concat());
    }
    let mut edited = base.to_vec();
    for (index, pair) in pairs.iter().enumerate() {
        edited.push(if index == 0 { b'?' } else { b'&' });
        edited.extend_from_slice(pair);
    }
    edited
}

fn escaped(text: &str) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'#' | b'&' | b'"' | b'<' | b'>') {
            out.push(byte);
        } else {
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_edited() {
        let set = [("a".to_owned(), "1 2".to_owned())];
        assert_eq!(edit_query(b"/p", &set, &[]), b"/p?a=1%202");
        assert_eq!(edit_query(b"/p?a=9&b=2&z&c=3", &set, &["z".to_owned()]), b"/p?b=2&c=3&a=1%202");
        assert_eq!(edit_query(b"/p?z=1", &[], &["z".to_owned()]), b"/p");
    }
}
