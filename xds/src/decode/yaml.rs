//! YAML and JSON text to one tree.

use serde::Deserialize as _;
use serde_json::{Map, Number, Value};

/// What a text is written in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Syntax {
    /// JSON.
    Json,
    /// YAML, of which JSON is a part.
    Yaml,
}

/// Brackets in brackets. The YAML parser needs time that grows with the square of it before it refuses.
const NESTING_MAX: usize = 1_000;

/// Parses one document.
///
/// # Errors
/// The parser's message, with line and column.
pub(crate) fn parse(text: &str, syntax: Syntax) -> Result<Value, String> {
    match syntax {
        Syntax::Json => serde_json::from_str(text).map_err(|e| format!("invalid JSON: {e}")),
        Syntax::Yaml => {
            if is_nested_too_deeply(text) {
                return Err(format!("invalid YAML: more than {NESTING_MAX} brackets in brackets"));
            }
            merged(serde_yaml_ng::from_str(text).map_err(|e| format!("invalid YAML: {e}"))?)
        }
    }
}

/// Parses all documents of a text; JSON has one.
///
/// # Errors
/// The parser's message, with line and column.
pub(crate) fn parse_all(text: &str, syntax: Syntax) -> Result<Vec<Value>, String> {
    if syntax == Syntax::Json {
        return Ok(vec![parse(text, syntax)?]);
    }
    if is_nested_too_deeply(text) {
        return Err(format!("invalid YAML: more than {NESTING_MAX} brackets in brackets"));
    }
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let read = documents.map(|document| {
        merged(serde_yaml_ng::Value::deserialize(document).map_err(|e| format!("invalid YAML: {e}"))?)
    });
    read.collect()
}

fn merged(mut tree: serde_yaml_ng::Value) -> Result<Value, String> {
    tree.apply_merge().map_err(|e| format!("invalid YAML: {e}"))?;
    to_json(tree)
}

/// Counts brackets in strings too, of which no string has that many more opening than closing ones.
fn is_nested_too_deeply(text: &str) -> bool {
    let mut depth = 0_usize;
    text.bytes().any(|byte| {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > NESTING_MAX
    })
}

fn to_json(tree: serde_yaml_ng::Value) -> Result<Value, String> {
    use serde_yaml_ng::Value as Yaml;
    Ok(match tree {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => Value::Bool(value),
        Yaml::Number(number) => Value::Number(number_to_json(&number)?),
        Yaml::String(value) => Value::String(value),
        Yaml::Sequence(values) => Value::Array(values.into_iter().map(to_json).collect::<Result<_, _>>()?),
        Yaml::Mapping(entries) => {
            let mut map = Map::with_capacity(entries.len());
            for (key, value) in entries {
                // Envoy leaves out what is tagged so; it is how people keep anchors in a file.
                if matches!(&value, Yaml::Tagged(tagged) if tagged.tag == "ignore") {
                    continue;
                }
                map.insert(key_to_json(&key)?, to_json(value)?);
            }
            Value::Object(map)
        }
        Yaml::Tagged(tagged) => to_json(tagged.value)?,
    })
}

fn number_to_json(number: &serde_yaml_ng::Number) -> Result<Number, String> {
    if let Some(value) = number.as_u64() {
        return Ok(value.into());
    }
    if let Some(value) = number.as_i64() {
        return Ok(value.into());
    }
    number
        .as_f64()
        .and_then(Number::from_f64)
        .ok_or_else(|| format!("invalid YAML: {number} is not a number that JSON has"))
}

fn key_to_json(key: &serde_yaml_ng::Value) -> Result<String, String> {
    match key {
        serde_yaml_ng::Value::String(key) => Ok(key.clone()),
        serde_yaml_ng::Value::Bool(key) => Ok(key.to_string()),
        serde_yaml_ng::Value::Number(key) => Ok(key.to_string()),
        _ => Err("invalid YAML: a mapping has a key that is not a scalar".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_read_as_json() {
        let yaml = "a: &x {b: 1, c: [true, ~, 'y', 1.5, -2]}\nd: *x\n4: e\nskip: !ignore {z: 1}\nf: !tag g\n";
        let json = r#"{"a":{"b":1,"c":[true,null,"y",1.5,-2]},"d":{"b":1,"c":[true,null,"y",1.5,-2]},"4":"e","f":"g"}"#;
        assert_eq!(parse(yaml, Syntax::Yaml).unwrap(), parse(json, Syntax::Json).unwrap());
    }

    #[test]
    fn merge_keys_are_applied() {
        let yaml = "base: &base {a: 1, b: 2}\nuse: {<<: *base, b: 3}\n";
        assert_eq!(parse(yaml, Syntax::Yaml).unwrap()["use"], serde_json::json!({"b": 3, "a": 1}));
    }

    #[test]
    fn malformed_text_says_where() {
        let error = parse("a: [1\nb: 2\n", Syntax::Yaml).unwrap_err();
        assert!(error.starts_with("invalid YAML: ") && error.contains("line"), "{error}");
        let error = parse("{\"a\": }", Syntax::Json).unwrap_err();
        assert_eq!(error, "invalid JSON: expected value at line 1 column 7");
        assert!(parse("a: 1\na: 2\n", Syntax::Yaml).is_err(), "a key given twice");
        assert!(parse("a: .nan\n", Syntax::Yaml).is_err());
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let alias = format!("*a{}, ", i - 1).repeat(9);
            text.push_str(&format!("a{i}: &a{i} [{}]\n", alias.trim_end_matches(", ")));
        }
        assert!(parse(&text, Syntax::Yaml).is_err());
        for depth in [500, 100_000] {
            let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            assert!(parse(&deep, Syntax::Yaml).is_err());
            assert!(parse(&deep, Syntax::Json).is_err());
        }
    }
}
