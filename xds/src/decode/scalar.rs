//! Scalars of the JSON mapping.

use prost_reflect::{EnumDescriptor, Kind, Value};

/// One scalar of `kind`. Enum names are matched in any case.
///
/// # Errors
/// What was expected instead.
pub(super) fn decode(kind: &Kind, json: &serde_json::Value) -> Result<Value, String> {
    Ok(match kind {
        Kind::Bool => Value::Bool(boolean(json)?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(narrow(integer(json)?, json)?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(narrow(integer(json)?, json)?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(narrow(integer(json)?, json)?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(narrow(integer(json)?, json)?),
        Kind::Float => Value::F32(float(json)? as f32),
        Kind::Double => Value::F64(float(json)?),
        Kind::String => Value::String(string(json)?),
        Kind::Bytes => Value::Bytes(base64(json)?.into()),
        Kind::Enum(descriptor) => Value::EnumNumber(enumeration(descriptor, json)?),
        Kind::Message(_) => return Err("expected a message".to_owned()),
    })
}

fn boolean(json: &serde_json::Value) -> Result<bool, String> {
    match json {
        serde_json::Value::Bool(value) => Ok(*value),
        // YAML 1.1 spells booleans like this, and so does the parser that Envoy uses.
        serde_json::Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Ok(true),
            "false" | "no" | "off" | "n" => Ok(false),
            _ => Err(format!("expected true or false, not {json}")),
        },
        _ => Err(format!("expected true or false, not {}", brief(json))),
    }
}

/// Wide enough for every integer type.
fn integer(json: &serde_json::Value) -> Result<i128, String> {
    let wrong = || format!("expected an integer, not {}", brief(json));
    match json {
        serde_json::Value::Number(number) => number
            .as_u64()
            .map(i128::from)
            .or_else(|| number.as_i64().map(i128::from))
            .or_else(|| number.as_f64().and_then(integral))
            .ok_or_else(wrong),
        serde_json::Value::String(text) => text
            .strip_prefix('0')
            // YAML 1.1 octal, as in `mode: 0644`.
            .and_then(|octal| i128::from_str_radix(octal, 8).ok())
            .or_else(|| text.parse().ok())
            .or_else(|| text.parse().ok().and_then(integral))
            .ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

/// A number like `1e4` where an integer is wanted. Above 2^53 a double does not say which integer was meant.
fn integral(value: f64) -> Option<i128> {
    (value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0).then_some(value as i128)
}

fn narrow<T: TryFrom<i128>>(value: i128, json: &serde_json::Value) -> Result<T, String> {
    T::try_from(value).map_err(|_| format!("integer {json} is out of range"))
}

fn float(json: &serde_json::Value) -> Result<f64, String> {
    let wrong = || format!("expected a number, not {}", brief(json));
    match json {
        serde_json::Value::Number(number) => number.as_f64().ok_or_else(wrong),
        serde_json::Value::String(text) => match text.as_str() {
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            "NaN" => Ok(f64::NAN),
            _ => text.parse().map_err(|_| wrong()),
        },
        _ => Err(wrong()),
    }
}

fn string(json: &serde_json::Value) -> Result<String, String> {
    match json {
        serde_json::Value::String(text) => Ok(text.clone()),
        // `version: 1.10` would silently become "1.1".
        serde_json::Value::Number(_) | serde_json::Value::Bool(_) => {
            Err(format!("expected a string; write \"{json}\" in quotes"))
        }
        _ => Err(format!("expected a string, not {}", brief(json))),
    }
}

fn enumeration(descriptor: &EnumDescriptor, json: &serde_json::Value) -> Result<i32, String> {
    let unknown = || format!("unknown enum value: {}", brief(json));
    let number = |value: i128| i32::try_from(value).map_err(|_| unknown());
    match json {
        serde_json::Value::Number(_) => number(integer(json)?),
        serde_json::Value::String(name) => {
            let exact = descriptor.get_value_by_name(name).map(|value| value.number());
            let any_case =
                || descriptor.values().find(|v| v.name().eq_ignore_ascii_case(name)).map(|v| v.number());
            match exact.or_else(any_case) {
                Some(value) => Ok(value),
                None => number(integer(json).map_err(|_| unknown())?),
            }
        }
        _ => Err(unknown()),
    }
}

/// Standard or URL-safe alphabet, padded or not, as proto3's JSON mapping asks of readers.
fn base64(json: &serde_json::Value) -> Result<Vec<u8>, String> {
    let text = json.as_str().ok_or_else(|| format!("expected base64, not {}", brief(json)))?;
    let digits = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 3);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return Err("invalid base64".to_owned()),
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    // One digit alone holds no byte.
    if digits.len() % 4 == 1 { Err("invalid base64".to_owned()) } else { Ok(bytes) }
}

/// The value, or what sort of value it is where it may be large.
pub(super) fn brief(json: &serde_json::Value) -> String {
    match json {
        serde_json::Value::Array(_) => "a list".to_owned(),
        serde_json::Value::Object(_) => "a message".to_owned(),
        serde_json::Value::String(text) if text.len() > 80 => "a long string".to_owned(),
        _ => json.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn booleans_as_yaml_spells_them() {
        for (text, value) in [("yes", true), ("Off", false), ("true", true), ("N", false)] {
            assert_eq!(boolean(&json!(text)), Ok(value), "{text}");
        }
        assert_eq!(boolean(&json!(1)).unwrap_err(), "expected true or false, not 1");
        assert!(boolean(&json!("maybe")).is_err());
    }

    #[test]
    fn integers_in_every_spelling() {
        for (given, value) in [
            (json!(7), 7),
            (json!("7"), 7),
            (json!(7.0), 7),
            (json!("7.0"), 7),
            (json!("1e3"), 1_000),
            (json!("0644"), 420),
            (json!("0"), 0),
            (json!(-7), -7),
        ] {
            assert_eq!(integer(&given), Ok(value), "{given}");
        }
        for bad in [json!(1.5), json!("x"), json!(""), json!(true), json!([1]), json!(1e30)] {
            assert!(integer(&bad).is_err(), "{bad}");
        }
        assert!(decode(&Kind::Uint32, &json!(-1)).unwrap_err().contains("out of range"));
        assert!(decode(&Kind::Int32, &json!(2_147_483_648_u64)).is_err());
        assert_eq!(decode(&Kind::Uint64, &json!("18446744073709551615")), Ok(Value::U64(u64::MAX)));
    }

    #[test]
    fn strings_are_not_guessed() {
        assert_eq!(string(&json!(1.1)).unwrap_err(), "expected a string; write \"1.1\" in quotes");
        assert!(string(&json!(true)).is_err());
    }

    #[test]
    fn base64_in_both_alphabets() {
        for (text, bytes) in
            [("", ""), ("Zg==", "f"), ("Zm8", "fo"), ("Zm9vYmE=", "fooba"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(base64(&json!(text)), Ok(bytes.as_bytes().to_vec()), "{text}");
        }
        assert_eq!(base64(&json!("-_-_")), base64(&json!("+/+/")));
        assert!(base64(&json!("Z")).is_err() && base64(&json!("Zm9v!")).is_err());
    }
}
