//! The descriptors of every message that configuration can hold.
//!
//! All of them take tens of megabytes once decoded. So only the files that define what is supported, and what these
//! import, are decoded together; the file of any other message is decoded when one has to be read or shown. All of it
//! is given back by [`release`], and comes again when it is needed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use prost_reflect::{DescriptorPool, MessageDescriptor};

use crate::{schema, support};

mod index {
    use super::File;
    include!(concat!(env!("OUT_DIR"), "/descriptors.rs"));
}

/// A .proto file in [`SET`].
struct File {
    /// Where it is in the set.
    start: usize,
    end: usize,
    /// Indices of the files that it imports.
    imports: &'static [u16],
}

/// The compiled files, one after the other.
static SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Messages that are read although no table promises anything about them.
const ALWAYS: [&str; 5] = [
    "envoy.service.discovery.v3.DeltaDiscoveryResponse",
    "google.protobuf.Any",
    "google.protobuf.Struct",
    "udpa.type.v1.TypedStruct",
    "xds.type.v3.TypedStruct",
];

#[derive(Default)]
struct Decoded {
    /// What is supported.
    core: Option<DescriptorPool>,
    /// By file, what is not.
    others: HashMap<u16, DescriptorPool>,
}

static DECODED: RwLock<Option<Decoded>> = RwLock::new(None);

/// Whether a descriptor was asked for since [`release_unused`] was called last.
static USED: AtomicBool = AtomicBool::new(false);

/// The message called `full_name`, without leading dot.
pub(crate) fn message(full_name: &str) -> Option<MessageDescriptor> {
    let file = file_of(full_name)?;
    USED.store(true, Ordering::Relaxed);
    in_core(|pool| pool.get_message_by_name(full_name)).or_else(|| {
        let mut decoded = DECODED.write().unwrap_or_else(PoisonError::into_inner);
        let others = &mut decoded.get_or_insert_default().others;
        others.entry(file).or_insert_with(|| decode(&closure([file]))).get_message_by_name(full_name)
    })
}

/// Whether there is a message called `full_name`. Decodes nothing.
pub(crate) fn exists(full_name: &str) -> bool {
    file_of(full_name).is_some()
}

/// Every message there is, for what may hold any of them. Nothing keeps it: it lives as long as its user wants it.
pub(crate) fn everything() -> DescriptorPool {
    decode(&(0..index::FILES.len() as u16).collect())
}

/// Gives back the memory that the definitions of messages take once some were read. They come again, in some ten
/// milliseconds, when the next configuration does; so this is for when the start is over.
pub fn release() {
    // What is in use keeps what it needs.
    schema::forget();
    DECODED.write().unwrap_or_else(PoisonError::into_inner).take();
}

/// As [`release`], when no configuration was read or shown since the last call.
pub fn release_unused() {
    if !USED.swap(false, Ordering::Relaxed) {
        release();
    }
}

/// Reads from the pool of what is supported.
fn in_core<T>(read: impl FnOnce(&DescriptorPool) -> Option<T>) -> Option<T> {
    // Pools are put in whole, so that a panic elsewhere cannot have left half of one.
    if let Some(decoded) = DECODED.read().unwrap_or_else(PoisonError::into_inner).as_ref()
        && let Some(pool) = &decoded.core
    {
        return read(pool);
    }
    let mut decoded = DECODED.write().unwrap_or_else(PoisonError::into_inner);
    let pool = decoded.get_or_insert_default().core.get_or_insert_with(|| {
        let messages = support::messages().chain(ALWAYS);
        decode(&closure(messages.filter_map(file_of)))
    });
    read(pool)
}

/// The file that defines a message.
fn file_of(full_name: &str) -> Option<u16> {
    let mut name = full_name;
    loop {
        // A nested message is where the one around it is.
        if let Ok(found) = index::MESSAGES.binary_search_by(|(known, _)| (*known).cmp(name)) {
            return Some(index::MESSAGES[found].1);
        }
        name = name.rsplit_once('.')?.0;
    }
}

/// These files and all that they import.
fn closure(files: impl IntoIterator<Item = u16>) -> BTreeSet<u16> {
    let mut wanted: Vec<_> = files.into_iter().collect();
    let mut found = BTreeSet::new();
    while let Some(file) = wanted.pop() {
        if found.insert(file) {
            wanted.extend(index::FILES[usize::from(file)].imports);
        }
    }
    found
}

fn decode(files: &BTreeSet<u16>) -> DescriptorPool {
    let files = files.iter().map(|file| &index::FILES[usize::from(*file)]);
    let set: Vec<u8> = files.flat_map(|file| &SET[file.start..file.end]).copied().collect();
    // The build wrote these bytes and the tests decode them; nothing outside the binary has a part in it.
    DescriptorPool::decode(set.as_slice()).expect("the embedded descriptors are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_decodes_on_its_own() {
        assert!(everything().all_messages().len() > 1_000);
        for file in 0..index::FILES.len() as u16 {
            decode(&closure([file]));
        }
        for (name, _) in index::MESSAGES.iter().step_by(50) {
            assert_eq!(message(name).unwrap().full_name(), *name);
        }
    }

    #[test]
    fn what_is_supported_is_decoded_together() {
        let core = in_core(|pool| Some(pool.files().len())).unwrap();
        assert!(core < index::FILES.len() / 2, "{core} of {}", index::FILES.len());
        for name in support::messages() {
            assert!(in_core(|pool| pool.get_message_by_name(name)).is_some(), "{name}");
        }
        // Not supported, and there nevertheless.
        let wasm = "envoy.extensions.filters.http.wasm.v3.Wasm";
        assert_eq!(message(wasm).unwrap().full_name(), wasm);
        assert!(exists(wasm) && !exists("envoy.Nothing") && message("envoy.Nothing").is_none());
        assert!(message("envoy.config.cluster.v3.Cluster.Nothing").is_none());
        assert!(message("culvert.v1.Capture").is_some());
    }
}
