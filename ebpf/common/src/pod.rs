//! What the programs know about a pod, and what they count for it.

/// Value of `PODS`, keyed by network namespace cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Position in `COUNTERS` and, through [`listener_slot`], in `LISTENERS`; below [`MAX_PODS`](crate::MAX_PODS).
    pub index: u32,
    /// Bits of `FLAG_*`.
    pub flags: u32,
    /// Port of the in-pod outbound listener on `127.0.0.1` and `::1`; 0 when outbound connections are not captured.
    pub outbound_port: u16,
    /// Port of the in-pod inbound listener; 0 when inbound connections are not captured.
    pub inbound_port: u16,
    name_len: u32,
    name: [u8; Self::NAME_MAX],
}

impl Pod {
    /// Without a listener connections are refused; without this flag they pass by.
    pub const FLAG_STRICT: u32 = 1;
    /// Bytes of a name that are kept.
    pub const NAME_MAX: usize = 64;

    /// A pod with the given name, cut to [`Self::NAME_MAX`] bytes.
    pub fn new(index: u32, strict: bool, outbound_port: u16, inbound_port: u16, name: &str) -> Self {
        let kept = &name.as_bytes()[..name.floor_char_boundary(Self::NAME_MAX)];
        let mut bytes = [0; Self::NAME_MAX];
        bytes[..kept.len()].copy_from_slice(kept);
        let flags = if strict { Self::FLAG_STRICT } else { 0 };
        Self { index, flags, outbound_port, inbound_port, name_len: kept.len() as u32, name: bytes }
    }

    /// Whether connections are refused when there is no listener.
    #[inline(always)]
    pub const fn is_strict(&self) -> bool {
        self.flags & Self::FLAG_STRICT != 0
    }

    /// The name given at enrolment, for people; the cookie is what identifies a pod.
    pub fn name(&self) -> &str {
        let len = (self.name_len as usize).min(Self::NAME_MAX);
        core::str::from_utf8(&self.name[..len]).unwrap_or_default()
    }
}

/// Position in `LISTENERS` of a pod's inbound listener for IPv4 or IPv6 clients.
#[inline(always)]
pub const fn listener_slot(index: u32, v6: bool) -> u32 {
    index * 2 + v6 as u32
}

/// Value of `COUNTERS`, one per pod and CPU: connections since the pod was enrolled.
///
/// Inbound counts are socket lookups: one per connection attempt, more when a client retries its SYN.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Outbound connects turned to the in-pod listener.
    pub captured_out: u64,
    /// Outbound connects left alone for an excluded port or prefix, a bound device or an IPv6 link-local destination.
    pub bypassed_out_excluded: u64,
    /// Outbound connects left alone because the proxy made them.
    pub bypassed_out_marked: u64,
    /// Outbound connects of a permissive pod left alone because no listener was there.
    pub bypassed_out_no_listener: u64,
    /// Outbound connects of a strict pod refused because no listener was there.
    pub refused_out: u64,
    /// Inbound connections handed to the in-pod listener.
    pub captured_in: u64,
    /// Inbound connections left alone for an excluded port.
    pub bypassed_in_excluded: u64,
    /// Connections of the proxy to the application, with the client's address.
    pub bypassed_in_proxy: u64,
    /// Inbound connections of a permissive pod left alone because no listener was there.
    pub bypassed_in_no_listener: u64,
    /// Inbound connections of a strict pod refused because no listener was there.
    pub refused_in: u64,
    /// Outbound connects that went directly to an endpoint.
    pub direct_out: u64,
    /// Connections that another pod has made directly to this one.
    pub direct_in: u64,
}

impl core::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.captured_out += other.captured_out;
        self.bypassed_out_excluded += other.bypassed_out_excluded;
        self.bypassed_out_marked += other.bypassed_out_marked;
        self.bypassed_out_no_listener += other.bypassed_out_no_listener;
        self.refused_out += other.refused_out;
        self.captured_in += other.captured_in;
        self.bypassed_in_excluded += other.bypassed_in_excluded;
        self.bypassed_in_proxy += other.bypassed_in_proxy;
        self.bypassed_in_no_listener += other.bypassed_in_no_listener;
        self.refused_in += other.refused_in;
        self.direct_out += other.direct_out;
        self.direct_in += other.direct_in;
    }
}

const _: () = assert!(size_of::<Pod>() == 4 * 4 + Pod::NAME_MAX);
const _: () = assert!(size_of::<Counters>() == 12 * 8);

#[cfg(feature = "user")]
mod user {
    use super::{Counters, Pod};

    // SAFETY: `repr(C)`, only integers, no implicit padding (asserted above).
    unsafe impl aya::Pod for Pod {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counters {}
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::{Pod, listener_slot};

    #[test]
    fn a_long_name_is_cut_at_a_character() {
        let long = "ü".repeat(40);
        assert_eq!(Pod::new(0, false, 1, 0, &long).name(), "ü".repeat(32));
        assert_eq!(Pod::new(0, false, 1, 0, &format!("x{long}")).name(), format!("x{}", "ü".repeat(31)));
        assert_eq!(Pod::new(0, true, 1, 0, "web").name(), "web");
    }

    #[test]
    fn slots_of_two_pods_never_meet() {
        assert_eq!(
            [(0, false), (0, true), (1, false), (1, true)].map(|(i, v6)| listener_slot(i, v6)),
            [0, 1, 2, 3]
        );
    }
}
