//! Small programs and maps, loaded to see whether the kernel takes them.

use std::{
    ffi::CStr,
    fmt, io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya_obj::generated::{
    BPF_ALU64, BPF_CALL, BPF_EXIT, BPF_JMP, BPF_K, BPF_MOV, bpf_attach_type, bpf_cmd, bpf_insn, bpf_map_type,
    bpf_prog_type,
};

use crate::sys;

/// What the verifier says when a program may not call a helper.
const NO_HELPER: [&str; 3] = ["invalid func ", "unknown func ", "program of this type cannot use helper "];
/// The kernel's own code for what it does not support; glibc has no name for it.
const ENOTSUPP: i32 = 524;

/// Why the kernel did not take something.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) error: io::Error,
    /// The last thing the verifier said, if it was asked at all.
    pub(crate) verifier: Option<String>,
}

impl Refusal {
    /// Whether privilege, a security module or a seccomp filter is in the way, and not a missing feature.
    pub(crate) fn is_denial(&self) -> bool {
        self.verifier.is_none() && self.error.raw_os_error() == Some(libc::EPERM)
    }

    /// Whether the kernel does not know what it was asked for.
    pub(crate) fn is_absence(&self) -> bool {
        let unknown = [libc::EINVAL, libc::E2BIG, libc::ENOSYS, libc::EOPNOTSUPP, ENOTSUPP];
        self.verifier.is_none() && self.error.raw_os_error().is_some_and(|errno| unknown.contains(&errno))
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { error, verifier: None }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.verifier {
            Some(said) => write!(f, "{}: {said}", self.error),
            None => self.error.fmt(f),
        }
    }
}

/// `mov r0, <value>; exit`, the least that is a program.
pub(crate) fn answering(value: i32) -> [bpf_insn; 2] {
    [insn(BPF_ALU64 | BPF_MOV | BPF_K, 0, value), exit()]
}

/// A program that calls a helper with whatever is in the registers.
fn calling(helper: u32) -> [bpf_insn; 3] {
    let [answer, exit] = answering(1);
    [insn(BPF_JMP | BPF_CALL, 0, helper as i32), answer, exit]
}

fn exit() -> bpf_insn {
    insn(BPF_JMP | BPF_EXIT, 0, 0)
}

fn insn(code: u32, dst: u8, imm: i32) -> bpf_insn {
    bpf_insn {
        code: code as u8,
        _bitfield_align_1: [],
        _bitfield_1: bpf_insn::new_bitfield_1(dst, 0),
        off: 0,
        imm,
    }
}

/// What to load a program as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) program: bpf_prog_type,
    pub(crate) attach: bpf_attach_type,
    /// The function in the kernel's type information that a tracing program is for; 0 for all others.
    pub(crate) btf_id: u32,
}

impl Kind {
    pub(crate) const fn new(program: bpf_prog_type, attach: bpf_attach_type) -> Self {
        Self { program, attach, btf_id: 0 }
    }
}

pub(crate) fn load(kind: Kind, insns: &[bpf_insn]) -> Result<OwnedFd, Refusal> {
    let mut log = vec![0_u8; 16 << 10];
    let mut attr = sys::zeroed();
    // SAFETY: all variants of the union are plain integers.
    let u = unsafe { &mut attr.__bindgen_anon_3 };
    u.prog_type = kind.program as u32;
    // A kernel that does not know of expected types refuses any but zero; those types need none.
    u.expected_attach_type = kind.attach as u32;
    u.insns = insns.as_ptr() as u64;
    u.insn_cnt = insns.len() as u32;
    u.license = c"GPL".as_ptr() as u64;
    u.log_level = 1;
    u.log_buf = log.as_mut_ptr() as u64;
    u.log_size = log.len() as u32;
    u.attach_btf_id = kind.btf_id;
    for (to, from) in u.prog_name.iter_mut().zip(b"culvert_probe") {
        *to = *from as libc::c_char;
    }
    sys::fd(bpf_cmd::BPF_PROG_LOAD, &mut attr).map_err(|error| {
        let said = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
        let last = said.lines().rfind(|line| !line.is_empty() && !line.starts_with("processed "));
        Refusal { error, verifier: last.map(str::to_owned) }
    })
}

/// Whether programs of this kind may call the helper.
pub(crate) fn may_call(kind: Kind, helper: u32) -> Result<bool, Refusal> {
    match load(kind, &calling(helper)) {
        Ok(_) => Ok(true),
        // The registers hold nothing useful, which is what most helpers are refused for: then they are there.
        Err(Refusal { verifier: Some(said), .. }) => Ok(!NO_HELPER.iter().any(|it| said.contains(it))),
        Err(refusal) if refusal.is_absence() => Ok(false),
        Err(refusal) => Err(refusal),
    }
}

pub(crate) fn create_map(
    kind: bpf_map_type,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
) -> Result<OwnedFd, Refusal> {
    let mut attr = sys::zeroed();
    // SAFETY: all variants of the union are plain integers.
    let u = unsafe { &mut attr.__bindgen_anon_1 };
    (u.map_type, u.key_size, u.value_size) = (kind as u32, key, value);
    (u.max_entries, u.map_flags) = (entries, flags);
    Ok(sys::fd(bpf_cmd::BPF_MAP_CREATE, &mut attr)?)
}

/// Attaches a program to an interface of the calling thread's network namespace, for as long as the link is open.
pub(crate) fn link_to_interface(
    program: BorrowedFd<'_>,
    index: u32,
    kind: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attr = sys::zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = index;
    attr.link_create.attach_type = kind as u32;
    sys::fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// The ids of the programs attached directly to a cgroup, and the flags they were attached with.
pub(crate) fn attached(cgroup: BorrowedFd<'_>, kind: bpf_attach_type) -> io::Result<(Vec<u32>, u32)> {
    // The most that one hook of a cgroup takes.
    let mut ids = vec![0_u32; 64];
    let mut attr = sys::zeroed();
    attr.query.__bindgen_anon_1.target_fd = cgroup.as_raw_fd() as u32;
    attr.query.attach_type = kind as u32;
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    sys::bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: plain integers, which the kernel has written.
    let (count, flags) = unsafe { (attr.query.__bindgen_anon_2.prog_cnt, attr.query.attach_flags) };
    ids.truncate(count as usize);
    Ok((ids, flags))
}
