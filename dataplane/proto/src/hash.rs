//! The hash functions of Envoy's consistent hashing, byte for byte.

pub use culvert_model::xxh64;

/// What the C++ standard library hashes strings with, and Envoy's `MURMUR_HASH_2`.
const MURMUR_SEED: u64 = 0xC70F_6907;

/// MurmurHash2 of 64 bits with the seed that Envoy uses.
#[must_use]
pub fn murmur2(bytes: &[u8]) -> u64 {
    const MUL: u64 = 0xC6A4_A793_5BD1_E995;
    let mix = |value: u64| value ^ (value >> 47);
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = MURMUR_SEED ^ (bytes.len() as u64).wrapping_mul(MUL);
    for word in words {
        let data = mix(u64::from_le_bytes(*word).wrapping_mul(MUL)).wrapping_mul(MUL);
        hash = (hash ^ data).wrapping_mul(MUL);
    }
    if !rest.is_empty() {
        let data = rest.iter().rev().fold(0_u64, |data, byte| (data << 8) | u64::from(*byte));
        hash = (hash ^ data).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_values() {
        // What libstdc++ gives for std::hash<std::string>, which Envoy's murmur2 is.
        assert_eq!(murmur2(b"hello"), 2_762_169_579_135_187_400);
        assert_eq!(murmur2(b"World"), 18_151_272_839_730_735_401);
        assert_eq!(murmur2(b"foo"), 9_631_199_822_919_835_226);
    }
}
