//! What was done to which pod, on disk: `STATE_DIR/pods/NAME.json`, written before anything is changed and removed after
//! all is undone. It is how a new instance finds what a dead one left, and how pods enrolled by `culvert pod add` survive
//! a restart. The directory is on a tmpfs (`/run`): a reboot clears it together with the kernel's state.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::capture::{CaptureMode, PodSpec, iptables::Plan};

/// Raised when the meaning of a field changes.
const VERSION: u32 = 1;

/// Who asked for a pod, which decides what a restart does with it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The pods file: forgotten when it is no longer in there.
    File,
    /// `culvert pod add`: kept until `culvert pod remove`.
    Socket,
}

/// One pod.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    version: u32,
    /// As checked, with its name filled in.
    pub pod: PodSpec,
    /// Who asked for it.
    pub source: Source,
    /// How its traffic is turned.
    pub mode: CaptureMode,
    /// Whether the kernel may hold something for it: false once all was undone and only the wish is kept.
    pub applied: bool,
    /// Of its network namespace. The same path with another cookie is another pod.
    pub netns_cookie: u64,
    /// It was removed, and what carries its open connections is still there: to be cleared, never to be captured again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// How iptables rules were installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// What `net.ipv4.tcp_fwmark_accept` was in the namespace; `None`: culvert has changed no setting or route there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fwmark_accept: Option<bool>,
}

/// Where an instance has its pins, so that they are found again when the next one is told to have them elsewhere.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Pins {
    /// The directory on the bpffs.
    pub pin_dir: PathBuf,
    /// Where the programs are attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_root: Option<PathBuf>,
}

/// Why the records cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("pod record {}: {source}", path.display())]
pub struct RecordError {
    path: PathBuf,
    source: io::Error,
}

/// The directory of records.
#[derive(Debug)]
pub struct RecordStore {
    directory: PathBuf,
}

impl Record {
    /// A record with nothing applied yet but about to be.
    pub fn new(pod: PodSpec, source: Source, mode: CaptureMode, netns_cookie: u64) -> Self {
        Self {
            version: VERSION,
            pod,
            source,
            mode,
            applied: true,
            leaving: false,
            netns_cookie,
            plan: None,
            fwmark_accept: None,
        }
    }
}

impl RecordStore {
    /// Below a state directory, both made (0700) if missing.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(state_dir: &Path) -> Result<Self, RecordError> {
        let directory = state_dir.join("pods");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| RecordError { path: directory.clone(), source })?;
        Ok(Self { directory })
    }

    /// All records, by name. A file that cannot be understood is reported and skipped; it stays where it is.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn load(&self) -> Result<Vec<Record>, RecordError> {
        let error = |source| RecordError { path: self.directory.clone(), source };
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(error)? {
            let path = entry.map_err(error)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => records.push(record),
                Err(source) => log::warn!("{}; skipped", RecordError { path, source }),
            }
        }
        records.sort_by(|a: &Record, b| a.pod.name.cmp(&b.pod.name));
        Ok(records)
    }

    /// Writes a record, replacing an older one of the same pod at once or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path(&record.pod.name);
        write(&path, record).map_err(|source| RecordError { path, source })
    }

    /// Removes a record. One that is not there is no error.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), RecordError> {
        let path = self.path(name);
        remove(&path).map_err(|source| RecordError { path, source })
    }

    /// The pins of the last instance that had any.
    pub fn pins(&self) -> Option<Pins> {
        serde_json::from_slice(&fs::read(self.pins_path()).ok()?).ok()
    }

    /// Remembers where the pins are; `None`: there are none any more.
    ///
    /// # Errors
    /// The file cannot be written or removed.
    pub fn set_pins(&self, pins: Option<&Pins>) -> Result<(), RecordError> {
        let path = self.pins_path();
        match pins {
            Some(pins) => write(&path, pins),
            None => remove(&path),
        }
        .map_err(|source| RecordError { path, source })
    }

    fn pins_path(&self) -> PathBuf {
        self.directory.with_file_name("pins.json")
    }

    fn path(&self, name: &str) -> PathBuf {
        // Names are checked to be file names before they become records.
        self.directory.join(format!("{name}.json"))
    }
}

/// All of the file or nothing of it, at any moment.
fn write(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let draft = path.with_extension("json.new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(&serde_json::to_vec_pretty(content)?)?;
    fs::rename(&draft, path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let record: Record = serde_json::from_slice(&fs::read(path)?)?;
    let of_name = path.file_stem().is_some_and(|stem| stem == record.pod.name.as_str());
    if record.version != VERSION || !of_name {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not written by this version of culvert"));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::capture::testing::TestDir;

    #[test]
    fn records_come_back_until_removed() {
        let directory = TestDir::new("records");
        let store = RecordStore::open(directory.path()).unwrap();
        let a = Record::new(PodSpec::new("a.b", "/run/netns/a"), Source::Socket, CaptureMode::Ebpf, 7);
        let mut b = Record::new(PodSpec::new("b", "/run/netns/b"), Source::File, CaptureMode::Iptables, 8);
        store.save(&b).unwrap();
        store.save(&a).unwrap();
        b.applied = false;
        store.save(&b).unwrap();
        assert_eq!(RecordStore::open(directory.path()).unwrap().load().unwrap(), [a.clone(), b]);
        let mode = fs::metadata(directory.path().join("pods/b.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        store.remove("b").unwrap();
        store.remove("b").unwrap();
        let pins = Pins { pin_dir: "/sys/fs/bpf/x".into(), cgroup_root: None };
        store.set_pins(Some(&pins)).unwrap();
        assert_eq!(store.pins(), Some(pins));
        store.set_pins(None).unwrap();
        assert_eq!(store.pins(), None);
        assert_eq!(store.load().unwrap(), [a]);
    }

    #[test]
    fn what_is_no_record_is_skipped() {
        let directory = TestDir::new("records-bad");
        let store = RecordStore::open(directory.path()).unwrap();
        let good = Record::new(PodSpec::new("good", "/run/netns/a"), Source::Socket, CaptureMode::Ebpf, 7);
        store.save(&good).unwrap();
        let pods = directory.path().join("pods");
        fs::write(pods.join("torn.json"), "{\"version\": 1, \"po").unwrap();
        fs::write(pods.join("draft.json.new"), "{").unwrap();
        // A record under another name would be removed under the wrong one.
        fs::copy(pods.join("good.json"), pods.join("other.json")).unwrap();
        assert_eq!(store.load().unwrap(), [good]);
    }
}
