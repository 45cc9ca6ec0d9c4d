//! One representation for IPv4 and IPv6 addresses.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address in 16 bytes, IPv4 in its v4-mapped form (`::ffff:a.b.c.d`), so that one map serves both families.
///
/// The words hold the address in network byte order exactly as the kernel's socket structures do: the eBPF programs
/// copy it word by word and never swap.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    words: [u32; 4],
}

/// The third word of every v4-mapped address, as it lies in memory.
const MAPPED: u32 = u32::from_be_bytes([0, 0, 0xff, 0xff]).to_be();

impl Address {
    /// The IPv4 loopback address that in-pod listeners use.
    pub const LOOPBACK_V4: Self = Self::from_v4_word(u32::from_be_bytes([127, 0, 0, 1]).to_be());
    /// The IPv6 loopback address that in-pod listeners use.
    pub const LOOPBACK_V6: Self = Self::from_words([0, 0, 0, 1_u32.to_be()]);

    /// From four words in network byte order, as in `struct in6_addr`.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// From one word in network byte order, as in `struct in_addr`.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// The four words in network byte order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// Whether a connection to this address stays on the loopback device: `127.0.0.0/8` and `::1`, and the
    /// unspecified addresses, which the kernel turns into loopback when connecting.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let last = self.words[3];
        if self.is_v4() {
            return last.to_ne_bytes()[0] == 127 || last == 0;
        }
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0 && (last == 1_u32.to_be() || last == 0)
    }

    /// Whether this is an IPv6 link-local address (`fe80::/10`), which means nothing without its interface.
    #[inline(always)]
    pub const fn is_link_local_v6(&self) -> bool {
        let bytes = self.words[0].to_ne_bytes();
        bytes[0] == 0xfe && bytes[1] & 0xc0 == 0x80
    }

    /// The address in the form the rest of the system uses: an [`IpAddr::V4`] for every v4-mapped address.
    pub fn to_ip(self) -> IpAddr {
        let mut octets = [0_u8; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).to_canonical()
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(ip.octets()))
    }
}

impl From<Ipv6Addr> for Address {
    fn from(ip: Ipv6Addr) -> Self {
        let mut words = [0_u32; 4];
        for (word, chunk) in words.iter_mut().zip(ip.octets().as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*chunk);
        }
        Self { words }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::Address;

    fn address(text: &str) -> Address {
        Address::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn both_spellings_of_an_ipv4_address_are_one() {
        assert_eq!(address("10.1.2.3"), address("::ffff:10.1.2.3"));
        assert_eq!(address("::ffff:10.1.2.3").to_ip(), "10.1.2.3".parse::<IpAddr>().unwrap());
        assert_eq!(address("2001:db8::7").to_ip(), "2001:db8::7".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn loopback_is_the_whole_v4_net_one_v6_address_and_the_unspecified() {
        for text in ["127.0.0.1", "127.255.0.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"] {
            assert!(address(text).is_loopback(), "{text}");
        }
        for text in ["128.0.0.1", "10.127.0.1", "::2", "2001:db8::1", "::127.0.0.1"] {
            assert!(!address(text).is_loopback(), "{text}");
        }
        assert_eq!(Address::LOOPBACK_V4, address("127.0.0.1"));
        assert_eq!(Address::LOOPBACK_V6, address("::1"));
    }

    #[test]
    fn link_local_is_fe80_slash_10() {
        assert!(address("fe80::1").is_link_local_v6() && address("febf::1").is_link_local_v6());
        assert!(!address("fec0::1").is_link_local_v6() && !address("254.128.0.1").is_link_local_v6());
    }
}
