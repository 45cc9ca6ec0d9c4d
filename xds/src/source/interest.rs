//! Which names in which directories decide what a path leads to.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs,
    path::{Component, Path, PathBuf},
};

/// Symbolic links that are followed, as the kernel limits them.
const LINKS_MAX: usize = 40;

/// A name in a directory. When something new appears under that name, the path leads elsewhere.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Interest {
    pub(super) directory: PathBuf,
    /// `None` for any name.
    pub(super) name: Option<OsString>,
    /// Whether it is a directory on the way, which can be replaced but not written.
    pub(super) passed: bool,
}

/// What to watch for a file: itself, every directory and symbolic link on the way to it, and where something is missing
/// on the way, the name that is missing. `path` is absolute.
pub(super) fn interests(path: &Path) -> Vec<Interest> {
    let mut found = Vec::new();
    let mut here = PathBuf::from("/");
    let mut pending: VecDeque<OsString> = names(path);
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&name);
        let Ok(metadata) = fs::symlink_metadata(&next) else {
            found.push(interest(&here, &name, false));
            return found;
        };
        if metadata.is_symlink() {
            found.push(interest(&here, &name, false));
            links += 1;
            let Ok(target) = fs::read_link(&next) else { return found };
            if links > LINKS_MAX {
                return found;
            }
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            let rest = std::mem::take(&mut pending);
            pending = names(&target);
            pending.extend(rest);
        } else {
            found.push(interest(&here, &name, !pending.is_empty()));
            here = next;
        }
    }
    found
}

fn interest(directory: &Path, name: &OsStr, passed: bool) -> Interest {
    Interest { directory: directory.to_owned(), name: Some(name.to_owned()), passed }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn shown(root: &Path, path: &Path) -> Vec<String> {
        let under = |interest: &Interest| {
            let path = interest.directory.join(interest.name.as_ref().unwrap());
            path.strip_prefix(root).unwrap().display().to_string()
        };
        interests(path).iter().filter(|i| i.directory.starts_with(root)).map(under).collect()
    }

    #[test]
    fn links_and_gaps_on_the_way() {
        let root = tempfile::tempdir().unwrap();
        let root = &root.path().canonicalize().unwrap();
        fs::create_dir(root.join("..1")).unwrap();
        fs::write(root.join("..1/lds.yaml"), "").unwrap();
        assert_eq!(shown(root, &root.join("..1/lds.yaml")), ["..1", "..1/lds.yaml"]);
        assert_eq!(shown(root, &root.join("..1/none.yaml")), ["..1", "..1/none.yaml"]);
        assert_eq!(shown(root, &root.join("none/lds.yaml")), ["none"]);

        // A Kubernetes volume.
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/lds.yaml", root.join("lds.yaml")).unwrap();
        assert_eq!(shown(root, &root.join("lds.yaml")), ["lds.yaml", "..data", "..1", "..1/lds.yaml"]);

        symlink(root.join("..1/../..data"), root.join("current")).unwrap();
        assert_eq!(
            shown(root, &root.join("current/lds.yaml")),
            ["current", "..1", "..data", "..1", "..1/lds.yaml"]
        );

        symlink("loop", root.join("loop")).unwrap();
        assert_eq!(shown(root, &root.join("loop/x")).len(), LINKS_MAX + 1);
    }
}
