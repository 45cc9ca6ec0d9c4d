//! The pod set: what `--pods FILE` and `culvert pod add` say about a pod, checked before anything is changed for it.

use std::{
    fmt, fs, io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_yaml_ng::{Mapping, Value};

/// Where a pod's connections are turned to, unless the pod says otherwise: Istio's ports, which operators know.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where connections to a pod are turned to, unless the pod says otherwise.
pub const INBOUND_PORT: u16 = 15006;

/// `f_type` of the file system that namespace files live on (`NSFS_MAGIC`, linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// `CGROUP2_SUPER_MAGIC`, linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// Longest pod name. Kubernetes names are at most 253 bytes; the name is also a file name.
const NAME_LEN_MAX: usize = 253;

/// What happens to a pod's connections while no proxy listens for them.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// They pass by the mesh and reach their destination.
    Permissive,
    /// They are refused.
    #[default]
    Strict,
}

/// The listener that a pod's connections of one direction enter.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Target {
    /// The only listener whose `traffic_direction` is this direction.
    #[default]
    Default,
    /// The listener of this name.
    Listener(String),
    /// This direction is not captured; written `off`.
    Off,
}

/// A pod as it is described by the operator.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PodSpec {
    /// Unique; letters, digits, `.`, `_` and `-`. Left empty, it becomes the last part of `netns`.
    #[serde(default)]
    pub name: String,
    /// The pod's network namespace: a bind mount as `ip netns` makes it, or `/proc/PID/ns/net`.
    pub netns: PathBuf,
    /// The pod's cgroup (v2). Checked and reported; what is captured is decided by the network namespace alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// `strict` unless given.
    #[serde(default)]
    pub policy: Policy,
    /// Where connections from the pod go.
    #[serde(default)]
    pub outbound: Target,
    /// Where connections to the pod go.
    #[serde(default)]
    pub inbound: Target,
    /// The pod's own addresses; those of its interfaces unless given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Whether connections between this pod and others of this node go past the proxy where it has nothing to do but pass
    /// bytes on; `--direct` unless given. Both pods have to allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
    /// The port of the outbound in-pod listener, on the pod's loopback addresses.
    #[serde(default = "outbound_port")]
    pub outbound_port: u16,
    /// The port of the inbound in-pod listener, on all of the pod's addresses.
    #[serde(default = "inbound_port")]
    pub inbound_port: u16,
    /// Whether bytes of its connections may skip TCP inside the node, where culvert splices. See [`crate::capture::splice`]
    /// for what an application may notice.
    #[serde(default = "splice", skip_serializing_if = "Clone::clone")]
    pub splice: bool,
}

/// Why a pod, or the file that describes pods, was refused. Every message names the pod and the field.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The file cannot be read.
    #[error("pods file {}: {source}", path.display())]
    Read {
        /// As given by `--pods`.
        path: PathBuf,
        /// Of opening or reading.
        source: io::Error,
    },
    /// The file is no YAML mapping with a `pods` list.
    #[error("pods file: {0}")]
    Syntax(String),
    /// A field of a pod does not say what it should.
    #[error("pod {pod}: {field}: {reason}")]
    Field {
        /// Its name, or its place in the file (`#2`) when it has none.
        pod: String,
        /// As written in the file.
        field: String,
        /// What is wrong, for a person.
        reason: String,
    },
    /// Two pods have the same name.
    #[error("pod {0}: name: used twice")]
    DuplicateName(String),
    /// Two pods have the same network namespace.
    #[error("pod {pod}: netns: {} is the network namespace of pod {other} too", netns.display())]
    DuplicateNetns {
        /// The later one.
        pod: String,
        /// The one that has it already.
        other: String,
        /// As the later one gives it.
        netns: PathBuf,
    },
}

/// A network namespace, held open.
#[derive(Debug)]
pub struct Netns {
    /// For `setns(2)`. While it is open the namespace lives, even after its name is gone.
    pub fd: OwnedFd,
    /// Tells one namespace from another on this machine for as long as it lives.
    pub id: NetnsId,
}

/// Device and inode of a namespace file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

/// Reads the file given by `--pods`. Every pod is checked against this machine, and all against each other.
///
/// # Errors
/// The first thing wrong, by pod and field; then none of the pods should be used.
pub fn load(path: &Path) -> Result<Vec<PodSpec>, PodError> {
    let text = fs::read_to_string(path).map_err(|source| PodError::Read { path: path.to_owned(), source })?;
    let pods = parse(&text)?;
    check_all(&pods)?;
    Ok(pods)
}

/// Reads the YAML of a pods file without looking at the machine: `pods:` with a list of [`PodSpec`].
///
/// # Errors
/// What is wrong, by pod and field.
pub fn parse(text: &str) -> Result<Vec<PodSpec>, PodError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        pods: Option<Vec<Value>>,
    }
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let file: File = serde_yaml_ng::from_str(text).map_err(|error| PodError::Syntax(error.to_string()))?;
    let pods = file.pods.unwrap_or_default();
    pods.into_iter().enumerate().map(|(index, value)| pod(index, value)).collect()
}

impl PodSpec {
    /// A pod of this network namespace with everything else left to its default.
    pub fn new(name: impl Into<String>, netns: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            netns: netns.into(),
            cgroup: None,
            policy: Policy::default(),
            outbound: Target::default(),
            inbound: Target::default(),
            addresses: Vec::new(),
            direct: None,
            outbound_port: OUTBOUND_PORT,
            inbound_port: INBOUND_PORT,
            splice: true,
        }
    }

    /// Fills in the name where it was left out, and checks every field against this machine.
    ///
    /// # Errors
    /// The field that is wrong. The network namespace is returned open, so that what was checked is what is used.
    pub fn check(&mut self) -> Result<Netns, PodError> {
        if self.name.is_empty() {
            self.name = name_of(&self.netns);
        }
        self.check_name()?;
        if self.outbound_port == 0 || self.inbound_port == 0 || self.outbound_port == self.inbound_port {
            let field = if self.outbound_port == 0 { "outbound_port" } else { "inbound_port" };
            return Err(self.wrong(field, "must not be 0, and the two must differ"));
        }
        if self.outbound == Target::Off && self.inbound == Target::Off {
            return Err(self.wrong("inbound", "off in both directions: nothing would be captured"));
        }
        if let Some(cgroup) = &self.cgroup {
            check_cgroup(cgroup).map_err(|reason| self.wrong("cgroup", reason))?;
        }
        Netns::open(&self.netns).map_err(|reason| self.wrong("netns", reason))
    }

    fn check_name(&self) -> Result<(), PodError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.name.is_empty() || self.name.len() > NAME_LEN_MAX {
            return Err(self.wrong("name", format!("must have 1 to {NAME_LEN_MAX} characters")));
        }
        if !self.name.chars().all(legal) || self.name.starts_with('.') {
            return Err(self.wrong("name", "only letters, digits, `.`, `_` and `-`, and no `.` in front"));
        }
        Ok(())
    }

    fn wrong(&self, field: &str, reason: impl Into<String>) -> PodError {
        wrong(&self.name, field, reason)
    }
}

impl Netns {
    /// Opens a network namespace by its path. The host's own is refused: capturing there would capture every process
    /// of the node, this one included.
    ///
    /// # Errors
    /// In words, for the field `netns`.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = fs::File::open(path)
            .map_err(|error| format!("cannot open {}: {}", path.display(), reason(&error)))?;
        let not = || format!("{} is not a network namespace", path.display());
        let fs_type =
            rustix::fs::fstatfs(&file).map_err(|error| format!("{}: {error}", path.display()))?.f_type;
        // The type is a signed word on some architectures; the constant has 32 bits on all.
        if (fs_type as u64) & 0xffff_ffff != NSFS_MAGIC {
            return Err(not());
        }
        let id = NetnsId::of(&file).map_err(|error| format!("{}: {error}", path.display()))?;
        if NetnsId::of_host().is_ok_and(|host| host == id) {
            return Err(format!(
                "{} is the host's network namespace, which is never captured",
                path.display()
            ));
        }
        let fd = OwnedFd::from(file);
        // Namespaces of other kinds are on nsfs too; only entering one proves its kind.
        culvert_ring::net::in_netns(fd.as_fd(), || ()).map_err(|error| match error.raw_os_error() {
            Some(code) if code == rustix::io::Errno::INVAL.raw_os_error() => not(),
            _ => format!("cannot enter {}: {}", path.display(), reason(&error)),
        })?;
        Ok(Self { fd, id })
    }
}

impl NetnsId {
    /// Of the namespace that is at `path` now.
    ///
    /// # Errors
    /// Of `stat(2)`: most of all that nothing is there any more.
    pub fn at(path: &Path) -> io::Result<Self> {
        Self::of(&fs::File::open(path)?)
    }

    fn of_host() -> io::Result<Self> {
        // The main thread's: worker and control threads enter pods, the main thread's own never changes.
        Self::at(Path::new("/proc/self/ns/net"))
    }

    fn of(file: &fs::File) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let metadata = file.metadata()?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// Checks pods against the machine and against each other.
///
/// # Errors
/// The first thing wrong.
pub fn check_all(pods: &[PodSpec]) -> Result<(), PodError> {
    let mut seen: Vec<(&PodSpec, NetnsId)> = Vec::new();
    for pod in pods {
        let netns = pod.clone().check()?;
        if seen.iter().any(|(other, _)| other.name == pod.name) {
            return Err(PodError::DuplicateName(pod.name.clone()));
        }
        if let Some((other, _)) = seen.iter().find(|(_, id)| *id == netns.id) {
            return Err(PodError::DuplicateNetns {
                pod: pod.name.clone(),
                other: other.name.clone(),
                netns: pod.netns.clone(),
            });
        }
        seen.push((pod, netns.id));
    }
    Ok(())
}

fn pod(index: usize, value: Value) -> Result<PodSpec, PodError> {
    let place = format!("#{}", index + 1);
    let Value::Mapping(mut fields) = value else {
        return Err(wrong(&place, "pods", "is not a mapping"));
    };
    let name: String = take(&mut fields, &place, "name")?.unwrap_or_default();
    let label = if name.is_empty() { place } else { name.clone() };
    let netns: PathBuf =
        take(&mut fields, &label, "netns")?.ok_or_else(|| wrong(&label, "netns", "is missing"))?;
    let mut pod = PodSpec::new(if name.is_empty() { name_of(&netns) } else { name }, netns);
    pod.cgroup = take(&mut fields, &label, "cgroup")?;
    pod.policy = take(&mut fields, &label, "policy")?.unwrap_or_default();
    pod.outbound = take(&mut fields, &label, "outbound")?.unwrap_or_default();
    pod.inbound = take(&mut fields, &label, "inbound")?.unwrap_or_default();
    pod.addresses = take(&mut fields, &label, "addresses")?.unwrap_or_default();
    pod.direct = take(&mut fields, &label, "direct")?;
    pod.outbound_port = take(&mut fields, &label, "outbound_port")?.unwrap_or(OUTBOUND_PORT);
    pod.inbound_port = take(&mut fields, &label, "inbound_port")?.unwrap_or(INBOUND_PORT);
    pod.splice = take(&mut fields, &label, "splice")?.unwrap_or(true);
    match fields.keys().next() {
        Some(Value::String(unknown)) => Err(wrong(&label, unknown, "is not a field of a pod")),
        Some(_) => Err(wrong(&label, "pods", "has a field whose name is not a string")),
        None => Ok(pod),
    }
}

/// Removes a field from the mapping, so that what is left at the end is unknown.
fn take<T: DeserializeOwned>(fields: &mut Mapping, pod: &str, field: &str) -> Result<Option<T>, PodError> {
    match fields.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            serde_yaml_ng::from_value(value).map(Some).map_err(|error| wrong(pod, field, error.to_string()))
        }
    }
}

fn check_cgroup(path: &Path) -> Result<(), String> {
    let file = fs::File::open(path)
        .map_err(|error| format!("cannot open {}: {}", path.display(), reason(&error)))?;
    let fs_type = rustix::fs::fstatfs(&file).map_err(|error| format!("{}: {error}", path.display()))?.f_type;
    let is_dir = file.metadata().is_ok_and(|metadata| metadata.is_dir());
    if (fs_type as u64) & 0xffff_ffff != CGROUP2_MAGIC || !is_dir {
        return Err(format!("{} is not a directory of a cgroup v2 hierarchy", path.display()));
    }
    Ok(())
}

fn name_of(netns: &Path) -> String {
    netns.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn wrong(pod: &str, field: &str, reason: impl Into<String>) -> PodError {
    let pod = if pod.is_empty() { "(unnamed)" } else { pod };
    PodError::Field { pod: pod.to_owned(), field: field.to_owned(), reason: reason.into() }
}

/// What the kernel said, without the number that [`io::Error`] adds.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn outbound_port() -> u16 {
    OUTBOUND_PORT
}

fn inbound_port() -> u16 {
    INBOUND_PORT
}

fn splice() -> bool {
    true
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permissive => "permissive",
            Self::Strict => "strict",
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "",
            Self::Listener(name) => name,
            Self::Off => "off",
        })
    }
}

impl From<String> for Target {
    fn from(text: String) -> Self {
        match text.as_str() {
            "" => Self::Default,
            "off" => Self::Off,
            _ => Self::Listener(text),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::TestNetns;

    fn error(text: &str) -> String {
        match parse(text).and_then(|pods| check_all(&pods)) {
            Ok(()) => panic!("accepted:\n{text}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_full_description_is_read() {
        let pods = parse(
            "pods:\n- name: client\n  netns: /run/netns/client\n  cgroup: /sys/fs/cgroup/a\n  policy: permissive\n  \
             outbound: out\n  inbound: off\n  addresses: [10.0.0.2, 'fd00::2']\n  outbound_port: 16001\n  splice: false\n\
             - netns: /run/netns/reviews-v1\n",
        )
        .unwrap();
        assert_eq!(pods[0].policy, Policy::Permissive);
        assert_eq!(pods[0].outbound, Target::Listener("out".into()));
        assert_eq!(pods[0].inbound, Target::Off);
        assert_eq!(pods[0].addresses.len(), 2);
        assert!(!pods[0].splice && pods[1].splice);
        assert_eq!((pods[0].outbound_port, pods[0].inbound_port), (16001, 15006));
        assert_eq!(pods[1], PodSpec::new("reviews-v1", "/run/netns/reviews-v1"));
    }

    #[test]
    fn an_empty_file_is_no_pods() {
        assert!(parse("").unwrap().is_empty());
        assert!(parse("pods:\n").unwrap().is_empty());
        assert!(parse("# nothing\npods: []\n").unwrap().is_empty());
    }

    #[test]
    fn errors_name_pod_and_field() {
        let ns = TestNetns::new("pods-err");
        let good = ns.path().display().to_string();
        let cases = [
            ("pods:\n- name: a\n".to_owned(), "pod a: netns: is missing"),
            (
                "pods:\n- name: a\n  netns: /run/netns/none\n".to_owned(),
                "pod a: netns: cannot open /run/netns/none: no such",
            ),
            (
                "pods:\n- name: a\n  netns: /etc/passwd\n".to_owned(),
                "pod a: netns: /etc/passwd is not a network namespace",
            ),
            (
                "pods:\n- name: a\n  netns: /proc/self/ns/mnt\n".to_owned(),
                "pod a: netns: /proc/self/ns/mnt is not a network",
            ),
            (
                "pods:\n- name: a\n  netns: /proc/self/ns/net\n".to_owned(),
                "pod a: netns: /proc/self/ns/net is the host's",
            ),
            (format!("pods:\n- name: a\n  netns: {good}\n  policy: lax\n"), "pod a: policy: "),
            (format!("pods:\n- name: a\n  netns: {good}\n  splice: perhaps\n"), "pod a: splice: "),
            (format!("pods:\n- name: a\n  netns: {good}\n  colour: red\n"), "pod a: colour: is not a field"),
            (format!("pods:\n- name: a\n  netns: {good}\n  addresses: [nonsense]\n"), "pod a: addresses: "),
            (
                format!("pods:\n- name: a\n  netns: {good}\n  outbound_port: 70000\n"),
                "pod a: outbound_port: ",
            ),
            (
                format!("pods:\n- name: a\n  netns: {good}\n  outbound_port: 15006\n"),
                "pod a: inbound_port: must not",
            ),
            (
                format!("pods:\n- name: a\n  netns: {good}\n  cgroup: /etc\n"),
                "pod a: cgroup: /etc is not a directory of a cgroup v2",
            ),
            (format!("pods:\n- name: ../a\n  netns: {good}\n"), "pod ../a: name: only letters"),
            (
                format!("pods:\n- name: a\n  netns: {good}\n  inbound: off\n  outbound: off\n"),
                "pod a: inbound: off in both",
            ),
            (
                format!("pods:\n- name: a\n  netns: {good}\n- name: a\n  netns: {good}\n"),
                "pod a: name: used twice",
            ),
            (format!("pods:\n- name: a\n  netns: {good}\n- name: b\n  netns: {good}\n"), "pod b: netns: "),
            ("pods:\n- 7\n".to_owned(), "pod #1: pods: is not a mapping"),
            ("pods:\n- netns: [x]\n".to_owned(), "pod #1: netns: "),
            ("pod: []\n".to_owned(), "pods file: unknown field `pod`"),
            ("{{{".to_owned(), "pods file: "),
        ];
        for (text, start) in cases {
            let message = error(&text);
            assert!(message.starts_with(start), "expected {start:?}, got {message:?}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Path::new("/nonexistent/pods.yaml")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/pods.yaml"), "{error}");
    }

    #[test]
    fn a_spec_survives_json() {
        let mut pod = PodSpec::new("a", "/run/netns/a");
        pod.inbound = Target::Off;
        pod.outbound = Target::Listener("x".into());
        pod.splice = false;
        let text = serde_json::to_string(&pod).unwrap();
        assert_eq!(serde_json::from_str::<PodSpec>(&text).unwrap(), pod);
        let short: PodSpec = serde_json::from_str(r#"{"netns":"/run/netns/a"}"#).unwrap();
        assert_eq!(short, PodSpec::new("", "/run/netns/a"));
    }
}
