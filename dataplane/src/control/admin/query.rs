//! Parameters of a request, from the query string and from the body of a form.

/// Names and values in the order they came, decoded. A name without `=` has an empty value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string. `+` stays, as it does in Envoy: filters are full of it.
    pub(super) fn parse(text: &str) -> Self {
        Self(pairs(text, str::to_owned).collect())
    }

    /// Adds the fields of a form (`application/x-www-form-urlencoded`), where `+` is a space.
    pub(super) fn add_form(&mut self, body: &[u8]) {
        let text = String::from_utf8_lossy(body);
        self.0.extend(pairs(&text, |part| part.replace('+', " ")));
    }

    /// The first value under this name.
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The first value under this name that says something: forms send empty fields too.
    pub(super) fn non_empty(&self, name: &str) -> Option<&str> {
        self.first(name).filter(|value| !value.is_empty())
    }

    /// Whether the name is there, with whatever value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.first(name).is_some()
    }

    /// All of them.
    pub(super) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

fn pairs(text: &str, prepare: impl Fn(&str) -> String) -> impl Iterator<Item = (String, String)> {
    text.split('&').filter(|part| !part.is_empty()).map(move |part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decode(&prepare(name)), decode(&prepare(value)))
    })
}

/// Undoes percent-encoding. What is not a valid escape stays as it is; what is not UTF-8 is replaced.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let escape = (bytes[index] == b'%').then(|| text.get(index + 1..index + 3)).flatten();
        let byte = escape.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                index += 3;
            }
            None => {
                out.push(bytes[index]);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_decoded() {
        let query = Query::parse("usedonly&filter=a%5B.%2B+b&format=json&&=x");
        assert!(query.has("usedonly") && !query.has("other"));
        assert_eq!(query.first("filter"), Some("a[.++b"));
        assert_eq!(query.first("usedonly"), Some(""));
        assert_eq!(query.non_empty("usedonly"), None);
        assert_eq!(query.pairs().len(), 4);
    }

    #[test]
    fn bad_escapes_stay() {
        for text in ["%", "%a", "%zz", "%+1", "a%", "%%41", "%é"] {
            let query = Query::parse(&format!("x={text}"));
            assert!(query.first("x").is_some(), "{text}");
        }
        assert_eq!(Query::parse("x=%zz%41%").first("x"), Some("%zzA%"));
        assert_eq!(Query::parse("x=%ff").first("x"), Some("\u{fffd}"));
    }

    #[test]
    fn a_form_adds_its_fields() {
        let mut query = Query::parse("level=debug");
        query.add_form(b"paths=a%3Ab&note=x+y");
        assert_eq!((query.first("level"), query.first("paths")), (Some("debug"), Some("a:b")));
        assert_eq!(query.first("note"), Some("x y"));
    }
}
