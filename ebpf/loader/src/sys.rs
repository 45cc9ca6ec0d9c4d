//! The calls of bpf(2) that aya keeps to itself or lacks, and nothing else that is unsafe about it.

use std::{
    ffi::{CStr, CString},
    io, mem,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use aya::Pod;
use aya_obj::generated::{
    bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_link_info, bpf_map_info, bpf_map_type, bpf_prog_type,
};

use crate::interrupted::uninterrupted;

/// Opens a pinned map or link.
pub(crate) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

/// Pins a link or map at `path`, which must not exist.
pub(crate) fn obj_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    // SAFETY: all variants of the union are plain integers.
    let u = unsafe { &mut attr.__bindgen_anon_4 };
    u.pathname = path.as_ptr() as u64;
    u.bpf_fd = object.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Makes a map without a name.
pub(crate) fn map_create(
    map_type: bpf_map_type,
    key_size: usize,
    value_size: usize,
    max_entries: usize,
) -> io::Result<OwnedFd> {
    let narrow = |size: usize| u32::try_from(size).map_err(io::Error::other);
    let mut attr = zeroed();
    // SAFETY: all variants of the union are plain integers.
    let u = unsafe { &mut attr.__bindgen_anon_1 };
    u.map_type = map_type as u32;
    (u.key_size, u.value_size, u.max_entries) =
        (narrow(key_size)?, narrow(value_size)?, narrow(max_entries)?);
    fd(bpf_cmd::BPF_MAP_CREATE, &mut attr)
}

/// Attaches a program to a cgroup or network namespace for as long as the link, or a pin of it, exists.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_fd = target.as_raw_fd() as u32;
    attr.link_create.attach_type = attach_type as u32;
    fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Replaces the program of a link in one step: no packet meets neither.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link now, whoever else has it open.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Attaches a program to a sockmap, for as long as anybody has the map open.
pub(crate) fn prog_attach(
    map: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<()> {
    let mut attr = zeroed();
    // SAFETY: all variants of the union are plain integers.
    let u = unsafe { &mut attr.__bindgen_anon_5 };
    u.__bindgen_anon_1.target_fd = map.as_raw_fd() as u32;
    u.attach_bpf_fd = program.as_raw_fd() as u32;
    u.attach_type = attach_type as u32;
    bpf(bpf_cmd::BPF_PROG_ATTACH, &mut attr).map(drop)
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkTarget {
    /// The id of a cgroup: its inode number.
    Cgroup(u64),
    /// The inode number of a network namespace.
    Netns(u32),
    /// Nothing any more: the cgroup or namespace is gone, or the link was detached.
    Gone,
}

/// What the link is attached to; `attach_type` tells how to read the kernel's answer.
pub(crate) fn link_target(link: BorrowedFd<'_>, attach_type: bpf_attach_type) -> io::Result<LinkTarget> {
    let info = link_info(link)?;
    // SAFETY: the kernel has filled the variant that belongs to the kind of link; both are plain integers.
    let (netns, cgroup) = unsafe { (info.__bindgen_anon_1.netns, info.__bindgen_anon_1.cgroup) };
    Ok(match attach_type {
        bpf_attach_type::BPF_SK_LOOKUP if netns.netns_ino != 0 => LinkTarget::Netns(netns.netns_ino),
        bpf_attach_type::BPF_SK_LOOKUP => LinkTarget::Gone,
        _ if cgroup.cgroup_id != 0 => LinkTarget::Cgroup(cgroup.cgroup_id),
        _ => LinkTarget::Gone,
    })
}

/// The id of the program that a link attaches.
pub(crate) fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(link_info(link)?.prog_id)
}

/// Tells one map from another for as long as either exists.
pub(crate) fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: plain integers, for which zero is a value.
    let mut info: bpf_map_info = unsafe { mem::zeroed() };
    // SAFETY: the kernel's structure for maps.
    unsafe { info_of(map, &mut info)? };
    Ok(info.id)
}

fn link_info(link: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    // SAFETY: plain integers, for which zero is a value.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    // SAFETY: the kernel's structure for links.
    unsafe { info_of(link, &mut info)? };
    Ok(info)
}

/// Lets the kernel fill in what it knows of an object.
///
/// # Safety
/// `T` is the kernel's structure for objects of this kind.
unsafe fn info_of<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attr = zeroed();
    attr.info.bpf_fd = object.as_raw_fd() as u32;
    attr.info.info = ptr::from_mut(info) as u64;
    attr.info.info_len = size_of::<T>() as u32;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// Loads a program. On refusal the error's text is the last of what the verifier said.
pub(crate) fn prog_load(
    prog_type: bpf_prog_type,
    attach_type: bpf_attach_type,
    name: &CStr,
    license: &CStr,
    insns: &[bpf_insn],
) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: all variants of the union are plain integers.
    let u = unsafe { &mut attr.__bindgen_anon_3 };
    u.prog_type = prog_type as u32;
    u.expected_attach_type = attach_type as u32;
    u.insns = insns.as_ptr() as u64;
    u.insn_cnt = insns.len() as u32;
    u.license = license.as_ptr() as u64;
    for (to, from) in u.prog_name.iter_mut().take(15).zip(name.to_bytes()) {
        *to = *from as libc::c_char;
    }
    let error = match fd(bpf_cmd::BPF_PROG_LOAD, &mut attr) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    // Again with a log: asking for one at once costs every load that goes well.
    let mut log = vec![0_u8; 256 * 1024];
    // SAFETY: as above.
    let u = unsafe { &mut attr.__bindgen_anon_3 };
    u.log_level = 1;
    u.log_buf = log.as_mut_ptr() as u64;
    u.log_size = log.len() as u32;
    let _ = fd(bpf_cmd::BPF_PROG_LOAD, &mut attr);
    let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
    let tail: Vec<&str> = log.lines().rev().take(6).collect();
    if tail.is_empty() {
        return Err(error);
    }
    let tail = tail.into_iter().rev().collect::<Vec<_>>().join(" | ");
    Err(io::Error::new(error.kind(), format!("{error}: {tail}")))
}

/// Reads an entry and removes it in one step, so that no other caller can have it too.
pub(crate) fn lookup_and_delete<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    element(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key)
}

/// Reads an entry.
pub(crate) fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    element(bpf_cmd::BPF_MAP_LOOKUP_ELEM, map, key)
}

/// Whether an entry may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapUpdate {
    Any = 0,
    New = 1,
}

/// Writes an entry.
pub(crate) fn update<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    how: MapUpdate,
) -> io::Result<()> {
    let mut attr = zeroed();
    // SAFETY: all variants of the union are plain integers.
    let u = unsafe { &mut attr.__bindgen_anon_2 };
    u.map_fd = map.as_raw_fd() as u32;
    u.key = ptr::from_ref(key) as u64;
    u.__bindgen_anon_1.value = ptr::from_ref(value) as u64;
    u.flags = how as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// The keys of a map, one call each; those that come or go meanwhile may be missing.
pub(crate) fn keys<K: Pod>(map: BorrowedFd<'_>) -> Vec<K> {
    let mut keys: Vec<K> = Vec::new();
    loop {
        let mut next = mem::MaybeUninit::<K>::uninit();
        let mut attr = zeroed();
        // SAFETY: all variants of the union are plain integers.
        let u = unsafe { &mut attr.__bindgen_anon_2 };
        u.map_fd = map.as_raw_fd() as u32;
        u.key = keys.last().map_or(0, |last| ptr::from_ref(last) as u64);
        u.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
        if bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr).is_err() {
            return keys;
        }
        // SAFETY: the kernel has written the key; the caller's type is that of the map.
        keys.push(unsafe { next.assume_init() });
    }
}

/// Maps the memory of a map into this process, to be shared with programs. [`munmap`] must follow.
pub(crate) fn mmap_shared(map: BorrowedFd<'_>, len: usize) -> io::Result<ptr::NonNull<u8>> {
    let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, access, shared, map.as_raw_fd(), 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    ptr::NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Ends a mapping that nobody refers to any more.
pub(crate) fn munmap(start: ptr::NonNull<u8>, len: usize) {
    // SAFETY: the caller owns the mapping and gives it up.
    unsafe { libc::munmap(start.as_ptr().cast(), len) };
}

/// Bytes that a TCP socket has been given and its peer has not acknowledged (`SIOCOUTQ`).
pub(crate) fn unsent(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one integer.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes.max(0) as u32) }
}

/// Whether a TCP socket that is in no map has received bytes that were not read.
pub(crate) fn has_unread(socket: BorrowedFd<'_>) -> io::Result<bool> {
    for request in [libc::FIONREAD, SIOCATMARK] {
        let mut answer: libc::c_int = 0;
        // SAFETY: the kernel writes one integer.
        let ret = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut answer) };
        if ret < 0 {
            return Err(io::Error::last_os_error());
        }
        // Before an urgent byte FIONREAD is silent about what comes behind it.
        if answer != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// asm-generic/sockios.h
const SIOCATMARK: libc::Ioctl = 0x8905;

/// Removes an entry; whether it was there.
pub(crate) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut attr = zeroed();
    // SAFETY: all variants of the union are plain integers.
    let u = unsafe { &mut attr.__bindgen_anon_2 };
    u.map_fd = map.as_raw_fd() as u32;
    u.key = ptr::from_ref(key) as u64;
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

fn element<K: Pod, V: Pod>(command: bpf_cmd, map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = mem::MaybeUninit::<V>::uninit();
    let mut attr = zeroed();
    // SAFETY: all variants of the union are plain integers.
    let u = unsafe { &mut attr.__bindgen_anon_2 };
    u.map_fd = map.as_raw_fd() as u32;
    u.key = ptr::from_ref(key) as u64;
    u.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    match bpf(command, &mut attr) {
        // SAFETY: the kernel has written the value; the caller's types are those of the map.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(crate) fn zeroed() -> bpf_attr {
    // SAFETY: a union of structures of plain integers; the kernel requires unused bytes to be zero.
    unsafe { mem::zeroed() }
}

pub(crate) fn fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = match command {
        bpf_cmd::BPF_PROG_LOAD => uninterrupted(|| bpf(command, attr))?,
        _ => bpf(command, attr)?,
    };
    // SAFETY: these commands answer with a new file descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

pub(crate) fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is a whole bpf_attr whose pointers the callers above keep alive across the call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command as u32, ptr::from_mut(attr), size_of_val(attr)) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}
