//! Whether bytes of pods' connections skip TCP is decided by a self-test of the kernel, and said.

use std::{fs, path::PathBuf};

use culvert_bpf::selftest::Property;

use crate::support::{
    culvert::Culvert,
    mesh::{Bootstrap, Mesh, Variant},
};

tests!(ebpf: the_selftest_decides, a_kernel_that_fails_is_not_trusted);

/// A cgroup in which no other can be made, and so no self-test.
struct Barren(PathBuf);

impl Barren {
    fn new(variant: Variant) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find_map(|line| line.split_once(" cgroup2 ")).unwrap().0;
        let root = root.split(' ').nth(1).unwrap();
        let name = format!("culvert-barren-{}-{}", std::process::id(), variant.driver);
        let path = PathBuf::from(root).join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("cgroup.max.descendants"), "0").unwrap();
        Self(path)
    }
}

impl Drop for Barren {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// What /stats says has failed.
fn failed(culvert: &Culvert) -> Vec<&'static str> {
    let names = Property::ALL.map(Property::name);
    let is_set = |name: &&str| culvert.stat(&format!("culvert.splice.selftest_failed.{name}")) == 1;
    names.into_iter().filter(is_set).collect()
}

fn start(variant: Variant, flags: &[&str]) -> (Mesh, Culvert) {
    let mut mesh = Mesh::new(variant);
    let app = mesh.world.pod("server").app();
    let culvert = mesh.start_with(&Bootstrap::of_service(&app), flags);
    (mesh, culvert)
}

fn the_selftest_decides(variant: Variant) {
    let (_mesh, culvert) = start(variant, &["--splice", "auto"]);
    let said = match failed(&culvert).first() {
        None => "splicing is off: the self-test passed, but ".to_owned(),
        Some(failed) => format!("splicing is off: self-test failed: {failed}: "),
    };
    assert!(culvert.log().contains(&said), "{}", culvert.log());
    assert_eq!(culvert.stat("culvert.splice.state"), 0);

    let (_mesh, culvert) = start(variant, &["--splice", "on"]);
    assert_eq!(culvert.stat("culvert.splice.state"), 1);
    assert!(
        culvert.log().contains("splicing is on, 262144 bytes at most in flight: asked for, "),
        "{}",
        culvert.log()
    );

    let (_mesh, culvert) = start(variant, &["--splice", "off"]);
    assert_eq!(culvert.stat("culvert.splice.state"), 0);
    assert!(culvert.log().contains("splicing is off: --splice off"), "{}", culvert.log());
}

fn a_kernel_that_fails_is_not_trusted(variant: Variant) {
    let barren = Barren::new(variant);
    let cgroup = barren.0.display().to_string();
    let (_mesh, culvert) = start(variant, &["--splice", "auto", "--cgroup", &cgroup]);
    assert_eq!(culvert.stat("culvert.splice.state"), 0);
    assert_eq!(failed(&culvert), ["setup"]);
    let said = "splicing is off: self-test failed: setup: a cgroup in ";
    assert!(culvert.log().contains(said), "{}", culvert.log());
}
