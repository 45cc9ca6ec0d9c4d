//! `extensions.filters.http.compressor.v3`.

use std::sync::Arc;

use culvert_model::{Compressor, CompressorLibrary, CompressorOverride};
use envoy_types::pb::{
    envoy::{
        config::core::v3::TypedExtensionConfig,
        extensions::{
            compression::{
                brotli::compressor::v3::Brotli,
                gzip::compressor::v3::{Gzip, gzip::CompressionLevel},
                zstd::compressor::v3::Zstd,
            },
            filters::http::compressor::v3::{self as pb, compressor_per_route::Override},
        },
    },
    google::protobuf::UInt32Value,
};

use super::{extension_name, matcher, network, unpack};
use crate::at::At;

/// The filter.
#[expect(deprecated, reason = "what is said in the old way counts where nothing is said in the new one")]
pub(super) fn filter(at: &At<'_>, filter: &pb::Compressor) -> Option<Arc<Compressor>> {
    let direction = filter.response_direction_config.as_ref();
    let common = direction.and_then(|direction| direction.common_config.as_ref());
    let config = filter.compressor_library.as_ref()?;
    let library = library(&at.field("compressor_library"), config)?;
    let min_length = common.and_then(|common| common.min_content_length.as_ref());
    let min_length = min_length.or_else(|| filter.content_length.as_ref().filter(|_| direction.is_none()));
    let at_common = at.field("response_direction_config");
    let at_common = at_common.field("common_config");
    let at_matchers = at_common.field("content_type_matcher");
    let matchers = common.map(|common| common.content_type_matcher.as_slice()).unwrap_or_default();
    let matchers: Vec<_> =
        matchers.iter().enumerate().map(|(i, it)| matcher::string(&at_matchers.index(i), it)).collect();
    let types = match common {
        Some(common) => &common.content_type,
        None => &filter.content_type,
    };
    let flag =
        |new: fn(&pb::compressor::ResponseDirectionConfig) -> bool, old: bool| direction.map_or(old, new);
    let codes = direction.map(|direction| direction.uncompressible_response_codes.as_slice());
    Some(Arc::new(Compressor {
        library,
        library_name: config.name.clone(),
        enabled: network::flag(common.and_then(|common| common.enabled.as_ref())),
        min_length: min_length.map_or(30, |length| u64::from(length.value)),
        content_types: types.iter().map(|it| it.to_ascii_lowercase()).collect(),
        content_matchers: matchers.into_iter().collect::<Option<_>>()?,
        disable_on_etag: flag(|it| it.disable_on_etag_header, filter.disable_on_etag_header),
        weaken_etag: flag(|it| it.weaken_etag_on_compress, false),
        remove_accept: flag(|it| it.remove_accept_encoding_header, filter.remove_accept_encoding_header),
        uncompressible: codes
            .unwrap_or_default()
            .iter()
            .filter_map(|code| u16::try_from(*code).ok())
            .collect(),
        directed: direction.is_some(),
        choose_first: filter.choose_first,
    }))
}

/// What a route says.
pub(super) fn per_route(route: &pb::CompressorPerRoute) -> Option<CompressorOverride> {
    Some(match route.r#override.as_ref()? {
        Override::Disabled(disabled) => CompressorOverride { disabled: *disabled, remove_accept: None },
        Override::Overrides(overrides) => {
            let direction = overrides.response_direction_config.as_ref();
            let remove = direction.and_then(|direction| direction.remove_accept_encoding_header.as_ref());
            CompressorOverride { disabled: false, remove_accept: remove.map(|remove| remove.value) }
        }
    })
}

fn library(at: &At<'_>, config: &TypedExtensionConfig) -> Option<CompressorLibrary> {
    let any = config.typed_config.as_ref()?;
    let or = |value: &Option<UInt32Value>, default| value.as_ref().map_or(default, |value| value.value);
    Some(if let Some(gzip) = unpack::<Gzip>(any) {
        CompressorLibrary::Gzip {
            level: match gzip.compression_level() {
                CompressionLevel::DefaultCompression => 6,
                level => level as u32,
            },
        }
    } else if let Some(brotli) = unpack::<Brotli>(any) {
        CompressorLibrary::Brotli {
            quality: or(&brotli.quality, 3),
            window_bits: or(&brotli.window_bits, 18),
        }
    } else if let Some(zstd) = unpack::<Zstd>(any) {
        let level = or(&zstd.compression_level, 3);
        if level > 22 {
            let at = at.field("typed_config");
            return at.field("compression_level").error("value must be less than or equal to 22");
        }
        CompressorLibrary::Zstd { level: if level == 0 { 3 } else { level }, checksum: zstd.enable_checksum }
    } else {
        let name = extension_name(Some(any));
        return at.field("typed_config").unsupported(format!("{name} is not a supported compression"));
    })
}
