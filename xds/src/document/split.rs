//! JSON objects and lists as slices of their text.
//!
//! Only the brackets, quotes and commas around the slices are looked at; whoever parses a slice finds what is wrong in
//! it.

/// The members of an object; `None` when the text is not one.
pub(super) fn members(text: &str) -> Option<Vec<(String, &str)>> {
    let mut text = Text { text, at: 0 };
    text.expect(b'{')?;
    let mut members = Vec::new();
    if text.peek()? != b'}' {
        loop {
            let key = text.value().filter(|key| key.starts_with('"'))?;
            text.expect(b':')?;
            members.push((serde_json::from_str(key).ok()?, text.value()?));
            if text.peek()? != b',' {
                break;
            }
            text.expect(b',')?;
        }
    }
    text.expect(b'}')?;
    text.is_at_end().then_some(members)
}

/// The elements of a list; `None` when the text is not one.
pub(super) fn elements(text: &str) -> Option<Vec<&str>> {
    let mut text = Text { text, at: 0 };
    text.expect(b'[')?;
    let mut elements = Vec::new();
    if text.peek()? != b']' {
        loop {
            elements.push(text.value()?);
            if text.peek()? != b',' {
                break;
            }
            text.expect(b',')?;
        }
    }
    text.expect(b']')?;
    text.is_at_end().then_some(elements)
}

/// A text that is read from its beginning to its end.
struct Text<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Text<'a> {
    fn bytes(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    fn skip_space(&mut self) {
        let space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.at += self.bytes().iter().take_while(space).count();
    }

    fn is_at_end(&mut self) -> bool {
        self.skip_space();
        self.bytes().is_empty()
    }

    /// The next byte that is no space.
    fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.bytes().first().copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// The next value. Every slice begins and ends at an ASCII byte, and so between characters.
    fn value(&mut self) -> Option<&'a str> {
        let length = match self.peek()? {
            b'"' => string(self.bytes())?,
            b'{' | b'[' => nested(self.bytes())?,
            _ => {
                let plain =
                    |byte: &&u8| !matches!(byte, b',' | b']' | b'}' | b':' | b' ' | b'\t' | b'\n' | b'\r');
                self.bytes().iter().take_while(plain).count()
            }
        };
        let value = self.text.get(self.at..self.at + length).filter(|value| !value.is_empty())?;
        self.at += length;
        Some(value)
    }
}

/// Length of the string that begins here, with its quotes.
fn string(bytes: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Length of the object or list that begins here.
fn nested(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0, 0_usize);
    loop {
        match bytes.get(at)? {
            b'"' => at += string(&bytes[at..])? - 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_lists_come_apart() {
        let text = " {\"a\" : {\"}\": \"\\\"]{\"} , \"b\u{e9}\":[1, [2]],\"c\":-1.5e3\n,\"d\":null} ";
        let expected = [("a", r#"{"}": "\"]{"}"#), ("b\u{e9}", "[1, [2]]"), ("c", "-1.5e3"), ("d", "null")];
        assert_eq!(members(text).unwrap(), expected.map(|(key, value)| (key.to_owned(), value)));
        assert_eq!(elements("[ {} ,\"x\", [] ]").unwrap(), ["{}", "\"x\"", "[]"]);
        assert_eq!((members("{ }").unwrap().len(), elements("[]").unwrap().len()), (0, 0));
    }

    #[test]
    fn anything_else_is_left_to_the_parser() {
        for text in [
            "",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\" 1}",
            "{\"a\":1} x",
            "[]",
            "{\"a\":}",
            "{\"a\":\"\\",
        ] {
            assert!(members(text).is_none(), "{text}");
        }
        for text in ["", "[", "[1", "[1,]", "[1 2]", "{}", "[] []", "[,]", "[\"a]"] {
            assert!(elements(text).is_none(), "{text}");
        }
    }
}
