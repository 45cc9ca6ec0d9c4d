//! Where the running kernel keeps what the programs read of its sockets, by its own type information (BTF).

use std::{collections::HashMap, fs};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use culvert_bpf_common::SpliceSettings;

use crate::Error;

/// The kernel's description of its own types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// The structures that begin a `struct tcp_sock`, each inside the next, those that it leads to, and the fields that are
/// looked for.
const WANTED: [(&str, &[&str]); 6] = [
    ("sock_common", &["skc_flags"]),
    ("sock", &["sk_rcvlowat", "sk_socket"]),
    ("socket", &["file"]),
    ("file", &["f_flags"]),
    ("inet_connection_sock", &["icsk_ulp_ops"]),
    ("tcp_sock", &["snd_una", "write_seq", "bytes_acked", "rcv_nxt", "bytes_received", "is_mptcp"]),
];

/// Looks up what the programs need to know.
///
/// # Errors
/// [`Error::Kernel`] when the kernel does not describe its types, or not as expected; [`Error::Program`] when it cannot load
/// the programs for a reason that is known.
pub(super) fn settings() -> Result<SpliceSettings, Error> {
    let cookies = is_helper_supported(ProgramType::SkMsg, BpfHelper::BPF_FUNC_get_netns_cookie);
    if matches!(cookies, Ok(false)) {
        let reason = "the kernel has no network namespace cookies for it (Linux 5.15 or later)".into();
        return Err(Error::Program { program: "splice_message", reason });
    }
    let missing =
        || Error::Kernel { feature: "type information of its sockets (CONFIG_DEBUG_INFO_BTF)", since: "5.4" };
    let bytes = fs::read(VMLINUX).map_err(|_| missing())?;
    let found = Types::parse(&bytes).and_then(|types| types.find()).ok_or_else(missing)?;
    let field = |name| found.get(name).copied();
    let needed = |name| field(name).ok_or_else(missing);
    Ok(SpliceSettings {
        limit: 0,
        sk_flags: needed("skc_flags")?,
        zerocopy_bit: needed("SOCK_ZEROCOPY")?,
        rcvlowat: needed("sk_rcvlowat")?,
        ulp_ops: needed("icsk_ulp_ops")?,
        snd_una: needed("snd_una")?,
        write_seq: needed("write_seq")?,
        bytes_acked: needed("bytes_acked")?,
        rcv_nxt: needed("rcv_nxt")?,
        bytes_received: needed("bytes_received")?,
        is_mptcp: field("is_mptcp").unwrap_or_default(),
        socket: needed("sk_socket")?,
        file: needed("file")?,
        file_flags: needed("f_flags")?,
        blocking: 0,
    })
}

/// The types of a BTF blob.
struct Types<'a> {
    strings: &'a [u8],
    /// By type number less one: kind, number of members, name and what follows the header.
    types: Vec<Type<'a>>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    kind: u32,
    bitfields: bool,
    name: u32,
    rest: &'a [u8],
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let magic = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
        if magic != MAGIC {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let section = |at: usize| {
            let start = header.checked_add(word(bytes, at)? as usize)?;
            bytes.get(start..start.checked_add(word(bytes, at + 4)? as usize)?)
        };
        let (mut rest, strings) = (section(8)?, section(16)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let (name, info) = (word(rest, 0)?, word(rest, 4)?);
            let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let size = match kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * members,
                KIND_ENUM | KIND_FUNC_PROTO => 8 * members,
                _ => 0,
            };
            types.push(Type { kind, bitfields: info >> 31 != 0, name, rest: rest.get(12..12 + size)? });
            rest = &rest[12 + size..];
        }
        Some(Self { strings, types })
    }

    /// Offsets of the wanted fields, and the wanted bit, by name.
    fn find(&self) -> Option<HashMap<&'a str, u32>> {
        let mut found = HashMap::new();
        for the in &self.types {
            match (the.kind, self.name(the.name)?) {
                (KIND_STRUCT, name) => {
                    if let Some((_, fields)) = WANTED.iter().find(|(wanted, _)| *wanted == name) {
                        self.members(the, 0, fields, &mut found, 0)?;
                    }
                }
                (KIND_ENUM, "sock_flags") => {
                    for entry in the.rest.as_chunks::<8>().0 {
                        if self.name(word(entry, 0)?)? == "SOCK_ZEROCOPY" {
                            found.insert("SOCK_ZEROCOPY", word(entry, 4)?);
                        }
                    }
                }
                _ => {}
            }
        }
        Some(found)
    }

    /// Members of a structure, those of unnamed ones inside it included.
    fn members(
        &self,
        the: &Type<'a>,
        base: u32,
        wanted: &[&str],
        found: &mut HashMap<&'a str, u32>,
        depth: u32,
    ) -> Option<()> {
        for member in the.rest.as_chunks::<12>().0 {
            let (name, id, offset) = (self.name(word(member, 0)?)?, word(member, 4)?, word(member, 8)?);
            let (offset, bits) = if the.bitfields { (offset & 0xff_ffff, offset >> 24) } else { (offset, 0) };
            let at = base + offset / 8;
            if name.is_empty() {
                let inner = self.types.get((id as usize).checked_sub(1)?)?;
                if matches!(inner.kind, KIND_STRUCT | KIND_UNION) && depth < 8 {
                    self.members(inner, at, wanted, found, depth + 1)?;
                }
            } else if bits == 0 && wanted.contains(&name) {
                found.insert(name, at);
            }
        }
        Some(())
    }

    fn name(&self, at: u32) -> Option<&'a str> {
        let bytes = self.strings.get(at as usize..)?;
        let len = bytes.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&bytes[..len]).ok()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{Types, settings};

    #[test]
    fn the_running_kernel_is_understood() {
        let settings = settings().unwrap();
        // `struct tcp_sock` contains the others in this order.
        assert!(settings.sk_flags < settings.ulp_ops && settings.rcvlowat < settings.ulp_ops);
        assert!(settings.ulp_ops < settings.write_seq && settings.ulp_ops < settings.bytes_acked);
        assert_ne!(settings.write_seq, settings.snd_una);
        assert!(settings.zerocopy_bit < 64);
    }

    #[test]
    fn what_is_no_type_information_is_refused() {
        assert!(Types::parse(b"").is_none());
        assert!(Types::parse(&[0; 64]).is_none());
        let mut cut = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
        cut.extend([0_u32, 1000, 1000, 10].iter().flat_map(|word| word.to_ne_bytes()));
        assert!(Types::parse(&cut).is_none());
    }
}
