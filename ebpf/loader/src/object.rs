//! The embedded eBPF object, and loading it.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapInfo},
    programs::{CgroupSockAddr, SockOps},
};
use aya_obj::{
    Object,
    generated::{bpf_attach_type, bpf_insn, bpf_prog_type},
};
use culvert_bpf_common::{LAYOUT_VERSION, POD_COOKIE_PLACEHOLDER};

use crate::{
    Error,
    cgroup::Cgroup,
    interrupted::uninterrupted,
    links::Link,
    pins::Pins,
    sandbox,
    sys::{self, LinkTarget},
};

/// What the build script made of `ebpf/programs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/culvert-bpf"));

/// The name of the socket lookup program.
const POD_LOOKUP: &str = "pod_lookup";
/// The programs attached to the cgroup; each link is pinned under the name of its program.
const SOCK_ADDR_PROGRAMS: [(&str, bpf_attach_type); 4] = [
    // The answers to `getpeername` and the records come before what needs them.
    ("getpeername4", bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME),
    ("getpeername6", bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME),
    ("connect4", bpf_attach_type::BPF_CGROUP_INET4_CONNECT),
    ("connect6", bpf_attach_type::BPF_CGROUP_INET6_CONNECT),
];
const SOCK_OPS: &str = "sock_ops";

/// The object, parsed; nothing in the kernel yet.
pub(crate) struct Programs {
    object: Object,
}

impl Programs {
    pub(crate) fn parse() -> Result<Self, Error> {
        let object = Object::parse(OBJECT).map_err(|e| Error::object(e.into()))?;
        Ok(Self { object })
    }

    /// Opens the pinned maps, or creates and pins those that do not exist.
    pub(crate) fn load(&self, pins: &Pins) -> Result<Ebpf, Error> {
        check_version(pins)?;
        let mut loader = loader();
        for name in self.object.maps.keys().filter(|name| !is_constant(name)) {
            self.check_layout(pins, name)?;
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader.load(OBJECT).map_err(Error::object)?;
        let layout = ebpf.map_mut("LAYOUT").ok_or_else(|| missing("LAYOUT"))?;
        let mut layout = Array::<_, u32>::try_from(layout).map_err(|e| Error::map("LAYOUT", e))?;
        layout.set(0, LAYOUT_VERSION, 0).map_err(|e| Error::map("LAYOUT", e))?;
        Ok(ebpf)
    }

    /// A pinned map must be the one this version would make; the loader would take any.
    fn check_layout(&self, pins: &Pins, name: &str) -> Result<(), Error> {
        let (Ok(pinned), Some(map)) = (MapInfo::from_pin(pins.map(name)), self.object.maps.get(name)) else {
            return Ok(());
        };
        let sizes = (pinned.key_size(), pinned.value_size(), pinned.max_entries());
        if sizes == (map.key_size(), map.value_size(), map.max_entries()) {
            return Ok(());
        }
        let found = format!("with another map {name} (sizes {sizes:?})");
        Err(Error::Layout { path: pins.dir().into(), found, expected: LAYOUT_VERSION })
    }

    /// The socket lookup program with the pinned maps and the constants of `ebpf` in place, to be loaded for one pod after
    /// another.
    pub(crate) fn pod_lookup(mut self, pins: &Pins, ebpf: &Ebpf) -> Result<PodLookup, Error> {
        let error = |e: &(dyn std::error::Error + 'static)| Error::program(POD_LOOKUP, e);
        let mut maps = Vec::new();
        for (name, map) in self.object.maps.drain() {
            let fd = match constants(ebpf, &name) {
                Some(fd) => fd.map_err(|e| error(&e))?,
                None => sys::obj_get(&pins.map(&name)).map_err(|e| Error::pin(pins.map(&name), e))?,
            };
            maps.push((name, fd, map));
        }
        let text_sections = self.object.functions.keys().map(|(section, _)| *section).collect();
        let by_name = maps.iter().map(|(name, fd, map)| (name.as_str(), fd.as_raw_fd(), map));
        self.object.relocate_maps(by_name, &text_sections).map_err(|e| error(&e))?;
        self.object.relocate_calls(&text_sections).map_err(|e| error(&e))?;

        let program = self.object.programs.get(POD_LOOKUP).ok_or_else(|| missing(POD_LOOKUP))?;
        let function =
            self.object.functions.get(&program.function_key()).ok_or_else(|| missing(POD_LOOKUP))?;
        let insns = function.instructions.clone();
        let cookie_at = cookie_placeholders(&insns);
        if cookie_at.is_empty() {
            return Err(missing(POD_LOOKUP));
        }
        let maps = maps.into_iter().map(|(_, fd, _)| fd).collect();
        Ok(PodLookup { insns, cookie_at, license: program.license.clone(), _maps: maps })
    }
}

/// A loader of aya's. It would read the kernel's types, which takes tens of milliseconds and megabytes each time and serves
/// relocations that the programs have none of.
pub(crate) fn loader() -> EbpfLoader<'static> {
    sandbox::without_kernel_types(EbpfLoader::new)
}

/// Loads the programs for the cgroup and puts them in place of those of an earlier process, if there was one.
pub(crate) fn attach(ebpf: &mut Ebpf, pins: &Pins, cgroup: &Cgroup) -> Result<(), Error> {
    let link = |name, attach_type, program: std::os::fd::BorrowedFd<'_>| {
        let path = pins.link(name);
        let identity = LinkTarget::Cgroup(cgroup.id);
        Link { path: &path, attach_type, target: cgroup.dir.as_fd(), identity }.put(program)
    };
    let error = |name| move |e| Error::program(name, &e);

    let program = ebpf.program_mut(SOCK_OPS).ok_or_else(|| missing(SOCK_OPS))?;
    let program: &mut SockOps = program.try_into().map_err(error(SOCK_OPS))?;
    uninterrupted(|| program.load()).map_err(error(SOCK_OPS))?;
    let fd = program.fd().map_err(error(SOCK_OPS))?;
    link(SOCK_OPS, bpf_attach_type::BPF_CGROUP_SOCK_OPS, fd.as_fd())?;

    for (name, attach_type) in SOCK_ADDR_PROGRAMS {
        let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
        let program: &mut CgroupSockAddr = program.try_into().map_err(error(name))?;
        uninterrupted(|| program.load()).map_err(error(name))?;
        let fd = program.fd().map_err(error(name))?;
        link(name, attach_type, fd.as_fd())?;
    }
    Ok(())
}

/// The socket lookup program, ready to be loaded for a pod.
pub(crate) struct PodLookup {
    insns: Vec<bpf_insn>,
    /// Where the instructions load the pod's cookie.
    cookie_at: Vec<usize>,
    license: CString,
    /// The maps that `insns` refer to by number.
    _maps: Vec<OwnedFd>,
}

impl PodLookup {
    /// Loads a copy for the pod with this network namespace cookie.
    pub(crate) fn load(&self, cookie: u64) -> Result<OwnedFd, Error> {
        let mut insns = self.insns.clone();
        for &at in &self.cookie_at {
            insns[at].imm = cookie as u32 as i32;
            insns[at + 1].imm = (cookie >> 32) as u32 as i32;
        }
        let (kind, attach) = (bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP, bpf_attach_type::BPF_SK_LOOKUP);
        sys::prog_load(kind, attach, c"pod_lookup", &self.license, &insns)
            .map_err(|e| Error::program(POD_LOOKUP, &e))
    }
}

/// Whether a map is a section of constants. They are this process's own, and frozen.
fn is_constant(map: &str) -> bool {
    map.starts_with('.')
}

/// The map of that name, if it is a section of constants.
fn constants(ebpf: &Ebpf, name: &str) -> Option<io::Result<OwnedFd>> {
    let Some(Map::Array(data)) = ebpf.map(name).filter(|_| is_constant(name)) else { return None };
    Some(data.fd().as_fd().try_clone_to_owned())
}

/// The 64-bit loads of the constant that stands for the cookie.
fn cookie_placeholders(insns: &[bpf_insn]) -> Vec<usize> {
    const LD_IMM64: u8 = 0x18;
    let (low, high) = (POD_COOKIE_PLACEHOLDER as u32 as i32, (POD_COOKIE_PLACEHOLDER >> 32) as u32 as i32);
    let is_placeholder = |pair: &[bpf_insn]| {
        pair[0].code == LD_IMM64 && pair[0].src_reg() == 0 && pair[0].imm == low && pair[1].imm == high
    };
    insns.windows(2).enumerate().filter(|(_, pair)| is_placeholder(pair)).map(|(at, _)| at).collect()
}

/// Refuses pins of another version. The version is written last, so its absence means an interrupted start.
fn check_version(pins: &Pins) -> Result<(), Error> {
    let path = pins.map("LAYOUT");
    let map = match sys::obj_get(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        map => map.map_err(|e| Error::pin(path, e))?,
    };
    let found: Option<u32> = sys::lookup(map.as_fd(), &0_u32)
        .map_err(|e| Error::map("LAYOUT", aya::maps::MapError::IoError(e)))?;
    match found.unwrap_or_default() {
        0 | LAYOUT_VERSION => Ok(()),
        found => {
            let found = format!("version {found}");
            Err(Error::Layout { path: pins.dir().into(), found, expected: LAYOUT_VERSION })
        }
    }
}

/// The object is part of this program: this cannot happen to a build that passed its tests.
fn missing(name: &'static str) -> Error {
    Error::Program { program: name, reason: "not in the embedded object".into() }
}
