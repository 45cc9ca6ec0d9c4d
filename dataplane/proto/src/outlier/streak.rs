//! Failures in a row.

/// Whether a status is that of a gateway: 502, 503, 504.
#[must_use]
pub fn gateway_error(status: u16) -> bool {
    (502..=504).contains(&status)
}

/// How many responses in a row were 5xx, and how many of gateways. Fits into one word, so that workers can share it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Streak {
    /// 5xx in a row.
    pub errors: u32,
    /// 502, 503 and 504 in a row.
    pub gateway: u32,
}

impl Streak {
    /// From its word.
    #[must_use]
    pub fn of_word(word: u64) -> Self {
        Self { errors: (word >> 32) as u32, gateway: word as u32 }
    }

    /// As one word; 0 without any failure.
    #[must_use]
    pub fn word(self) -> u64 {
        u64::from(self.errors) << 32 | u64::from(self.gateway)
    }

    /// After a response with this status.
    #[must_use]
    pub fn after(self, status: u16) -> Self {
        match status {
            502..=504 => {
                Self { errors: self.errors.saturating_add(1), gateway: self.gateway.saturating_add(1) }
            }
            500..=599 => Self { errors: self.errors.saturating_add(1), gateway: 0 },
            _ => Self::default(),
        }
    }
}
