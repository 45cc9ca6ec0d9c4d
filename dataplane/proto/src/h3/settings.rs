//! `SETTINGS` (RFC 9114, section 7.2.4).

use super::{Violation, frame, varint};

/// What one end of a connection says about itself; what it does not say is left out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Settings {
    /// `SETTINGS_MAX_FIELD_SECTION_SIZE` in bytes, 32 for each field added; no limit when not said.
    pub max_field_section: Option<u64>,
    /// `SETTINGS_ENABLE_CONNECT_PROTOCOL` (RFC 9220).
    pub connect_protocol: bool,
}

const QPACK_MAX_TABLE_CAPACITY: u64 = 0x1;
const MAX_FIELD_SECTION_SIZE: u64 = 0x6;
const ENABLE_CONNECT_PROTOCOL: u64 = 0x8;

/// Most settings that are looked at.
const COUNT_MAX: usize = 64;

impl Settings {
    /// Reads the payload of the frame.
    ///
    /// # Errors
    /// A setting twice, one of HTTP/2, a value that it cannot have, half a setting, or more than anybody has.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, Violation> {
        let mut settings = Self::default();
        let mut seen = Vec::new();
        while !bytes.is_empty() {
            let (id, taken) = varint::read(bytes).ok_or(Violation::Frame)?;
            bytes = &bytes[taken..];
            let (value, taken) = varint::read(bytes).ok_or(Violation::Frame)?;
            bytes = &bytes[taken..];
            if seen.contains(&id) || seen.len() == COUNT_MAX {
                return Err(Violation::Settings);
            }
            seen.push(id);
            match id {
                0x0 | 0x2..=0x5 => return Err(Violation::Settings),
                MAX_FIELD_SECTION_SIZE => settings.max_field_section = Some(value),
                ENABLE_CONNECT_PROTOCOL if value > 1 => return Err(Violation::Settings),
                ENABLE_CONNECT_PROTOCOL => settings.connect_protocol = value == 1,
                // A dynamic table is offered, and not used; others mean nothing here.
                _ => {}
            }
        }
        Ok(settings)
    }

    /// Appends the frame. There is no dynamic table.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut payload = Vec::with_capacity(16);
        varint::write(QPACK_MAX_TABLE_CAPACITY, &mut payload);
        varint::write(0, &mut payload);
        if let Some(max) = self.max_field_section {
            varint::write(MAX_FIELD_SECTION_SIZE, &mut payload);
            varint::write(max, &mut payload);
        }
        if self.connect_protocol {
            varint::write(ENABLE_CONNECT_PROTOCOL, &mut payload);
            varint::write(1, &mut payload);
        }
        frame::write_head(frame::SETTINGS, payload.len() as u64, out);
        out.extend_from_slice(&payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read() {
        for settings in [
            Settings::default(),
            Settings { max_field_section: Some(61_440), connect_protocol: true },
            Settings { max_field_section: Some(0), connect_protocol: false },
        ] {
            let mut out = Vec::new();
            settings.write(&mut out);
            assert_eq!(u64::from(out[0]), frame::SETTINGS);
            assert_eq!(Settings::parse(&out[2..]), Ok(settings));
        }
    }

    #[test]
    fn what_may_not_be_said_is_refused() {
        let parse = |bytes: &[u8]| Settings::parse(bytes);
        assert_eq!(parse(&[6, 1, 6, 1]), Err(Violation::Settings), "twice");
        assert_eq!(parse(&[3, 1]), Err(Violation::Settings), "of HTTP/2");
        assert_eq!(parse(&[8, 2]), Err(Violation::Settings), "no such value");
        assert_eq!(parse(&[6]), Err(Violation::Frame), "half of it");
        // One that exists to be ignored (section 7.2.4.1).
        assert_eq!(parse(&[0x21, 9]), Ok(Settings::default()));
    }
}
