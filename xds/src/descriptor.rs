//! The descriptors of every message that configuration can hold.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MessageDescriptor};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
    // The build wrote these bytes and the tests decode them; nothing outside the binary has a part in it.
    DescriptorPool::decode(bytes.as_slice()).expect("the embedded descriptors are valid")
});

/// All descriptors: Envoy's, Culvert's own and the protobuf library's. Decoded at the first use.
pub(crate) fn pool() -> &'static DescriptorPool {
    &POOL
}

/// The message called `full_name`, without leading dot.
pub(crate) fn message(full_name: &str) -> Option<MessageDescriptor> {
    POOL.get_message_by_name(full_name)
}

#[cfg(test)]
mod tests {
    #[test]
    fn pool_decodes() {
        let start = std::time::Instant::now();
        let pool = super::pool();
        eprintln!(
            "{} files, {} messages, {:?}",
            pool.files().len(),
            pool.all_messages().len(),
            start.elapsed()
        );
        assert!(super::message("culvert.v1.Capture").is_some());
    }
}
