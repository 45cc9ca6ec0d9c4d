//! Real files and real events.

use std::{os::unix::fs::symlink, time::Duration};

use super::*;

/// Guards against a hang only.
const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    root: PathBuf,
    watcher: Watcher,
    _directory: tempfile::TempDir,
}

fn fixture(file: &str, watched: Option<&str>) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    let mut watcher = Watcher::new().unwrap();
    watcher.watch(BTreeMap::from([(root.join(file), watched.map(|name| root.join(name)))]));
    Fixture { root, watcher, _directory: directory }
}

impl Fixture {
    fn write(&self, name: &str) {
        fs::write(self.root.join(name), "x").unwrap();
    }

    async fn expect(&mut self, name: &str) {
        let changed =
            tokio::time::timeout(PATIENCE, self.watcher.changed()).await.expect("no event").unwrap();
        assert_eq!(changed, BTreeSet::from([self.root.join(name)]));
        self.watcher.refresh();
    }

    /// Makes a change that is seen for sure and checks that nothing was seen before it.
    async fn expect_nothing_before(&mut self, name: &str) {
        self.write(name);
        self.expect(name).await;
        let more = tokio::time::timeout(Duration::from_millis(50), self.watcher.changed()).await;
        assert!(more.is_err(), "{more:?}");
    }
}

#[tokio::test]
async fn a_file_that_appears_is_written_or_renamed() {
    let mut f = fixture("a.yaml", None);
    f.write("a.yaml");
    f.expect("a.yaml").await;
    f.write("a.yaml");
    f.expect("a.yaml").await;
    f.write("other");
    fs::rename(f.root.join("other"), f.root.join("a.yaml")).unwrap();
    f.expect("a.yaml").await;
    f.write("other");
    fs::remove_file(f.root.join("a.yaml")).unwrap();
    fs::hard_link(f.root.join("other"), f.root.join("a.yaml")).unwrap();
    f.expect("a.yaml").await;
}

#[tokio::test]
async fn other_files_and_open_writers_are_no_change() {
    let mut f = fixture("a.yaml", None);
    f.write("b.yaml");
    let mut open = fs::File::create(f.root.join("a.yaml")).unwrap();
    io::Write::write_all(&mut open, b"half").unwrap();
    let early = tokio::time::timeout(Duration::from_millis(100), f.watcher.changed()).await;
    assert!(early.is_err(), "{early:?}");
    drop(open);
    f.expect("a.yaml").await;
    f.expect_nothing_before("a.yaml").await;
}

#[tokio::test]
async fn a_kubernetes_volume_is_swapped() {
    let mut f = fixture("lds.yaml", None);
    fs::create_dir(f.root.join("..1")).unwrap();
    f.write("..1/lds.yaml");
    symlink("..1", f.root.join("..data")).unwrap();
    symlink("..data/lds.yaml", f.root.join("lds.yaml")).unwrap();
    f.expect("lds.yaml").await;
    for version in ["..2", "..3"] {
        fs::create_dir(f.root.join(version)).unwrap();
        f.write(&format!("{version}/lds.yaml"));
        symlink(version, f.root.join("..data_tmp")).unwrap();
        fs::rename(f.root.join("..data_tmp"), f.root.join("..data")).unwrap();
        f.expect("lds.yaml").await;
    }
    // What the link leads to now is watched, too.
    f.write("..3/lds.yaml");
    f.expect("lds.yaml").await;
}

#[tokio::test]
async fn directories_come_go_and_are_replaced() {
    let mut f = fixture("d/e/a.yaml", None);
    fs::create_dir_all(f.root.join("d/e")).unwrap();
    f.expect("d/e/a.yaml").await;
    f.write("d/e/a.yaml");
    f.expect("d/e/a.yaml").await;
    fs::rename(f.root.join("d"), f.root.join("old")).unwrap();
    f.expect("d/e/a.yaml").await;
    fs::create_dir_all(f.root.join("new/e")).unwrap();
    f.write("new/e/a.yaml");
    fs::rename(f.root.join("new"), f.root.join("d")).unwrap();
    f.expect("d/e/a.yaml").await;
    f.write("d/e/a.yaml");
    f.expect("d/e/a.yaml").await;
}

#[tokio::test]
async fn any_name_in_a_watched_directory_counts() {
    let mut f = fixture("a.yaml", Some("."));
    f.write("token");
    f.expect("a.yaml").await;
}
