//! `extensions.filters.http.compressor.v3`.

use crate::{RuntimeFlag, StringMatcher};

/// `Compressor`, of responses.
#[derive(Clone, Debug)]
pub struct Compressor {
    /// `compressor_library`
    pub library: CompressorLibrary,
    /// `compressor_library.name`, which counters carry.
    pub library_name: String,
    /// `response_direction_config.common_config.enabled`
    pub enabled: RuntimeFlag,
    /// `min_content_length`: 30. What says that it is shorter is left alone.
    pub min_length: u64,
    /// `content_type`; empty for those that Envoy takes for text.
    pub content_types: Vec<String>,
    /// `content_type_matcher`
    pub content_matchers: Vec<StringMatcher>,
    /// `disable_on_etag_header`
    pub disable_on_etag: bool,
    /// `weaken_etag_on_compress`: a strong `etag` becomes a weak one instead of going away.
    pub weaken_etag: bool,
    /// `remove_accept_encoding_header`: the upstream does not compress.
    pub remove_accept: bool,
    /// `uncompressible_response_codes`
    pub uncompressible: Vec<u16>,
    /// Whether there is a `response_direction_config`: counters then say `response`.
    pub directed: bool,
    /// `choose_first`: of several encodings that a client likes equally the one of the first filter counts.
    pub choose_first: bool,
}

/// `compressor_library`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CompressorLibrary {
    /// `extensions.compression.brotli.compressor.v3.Brotli`
    Brotli {
        /// `quality`: 3 of 0 to 11.
        quality: u32,
        /// `window_bits`: 18 of 10 to 24.
        window_bits: u32,
    },
    /// `extensions.compression.gzip.compressor.v3.Gzip`
    Gzip {
        /// `compression_level`: 6 of 1 to 9.
        level: u32,
    },
    /// `extensions.compression.zstd.compressor.v3.Zstd`
    Zstd {
        /// `compression_level`: 3 of 1 to 22.
        level: u32,
        /// `enable_checksum`
        checksum: bool,
    },
}

/// `CompressorPerRoute`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CompressorOverride {
    /// `disabled`
    pub disabled: bool,
    /// `overrides.response_direction_config.remove_accept_encoding_header`
    pub remove_accept: Option<bool>,
}

impl CompressorLibrary {
    /// What `content-encoding` calls it.
    #[must_use]
    pub fn encoding(&self) -> &'static str {
        match self {
            Self::Brotli { .. } => "br",
            Self::Gzip { .. } => "gzip",
            Self::Zstd { .. } => "zstd",
        }
    }
}
