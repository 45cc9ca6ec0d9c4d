//! Links: attachments that outlive the process that made them.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use aya_obj::generated::bpf_attach_type;

use crate::{
    Error,
    sys::{self, LinkTarget},
};

/// A place to attach a program to, and the pin that keeps it attached.
pub(crate) struct Link<'a> {
    pub(crate) path: &'a Path,
    pub(crate) attach_type: bpf_attach_type,
    pub(crate) target: BorrowedFd<'a>,
    /// How the kernel names `target` in the information about a link.
    pub(crate) identity: LinkTarget,
}

impl Link<'_> {
    /// Makes `program` the attached program: by replacing the one of the pinned link in a single step, or, where
    /// there is no pinned link or it leads elsewhere, by a new one.
    pub(crate) fn put(&self, program: BorrowedFd<'_>) -> Result<(), Error> {
        if let Some(pinned) = self.pinned()? {
            match sys::link_update(pinned.as_fd(), program) {
                Ok(()) => return Ok(()),
                // The target went away between the question and the update.
                Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => Self::remove(self.path)?,
                Err(source) => return Err(self.error(source)),
            }
        }
        let link = sys::link_create(program, self.target, self.attach_type).map_err(|e| self.error(e))?;
        sys::obj_pin(link.as_fd(), self.path).map_err(|e| Error::pin(self.path, e))
    }

    /// The pinned link, if it is attached to the target. One that is attached elsewhere is removed.
    fn pinned(&self) -> Result<Option<OwnedFd>, Error> {
        let link = match sys::obj_get(self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            link => link.map_err(|e| Error::pin(self.path, e))?,
        };
        if sys::link_target(link.as_fd(), self.attach_type).map_err(|e| self.error(e))? == self.identity {
            return Ok(Some(link));
        }
        Self::remove(self.path)?;
        Ok(None)
    }

    /// Detaches the pinned link, now, and removes the pin. Nothing happens when there is none.
    pub(crate) fn remove(path: &Path) -> Result<(), Error> {
        match sys::obj_get(path) {
            Ok(link) => {
                // Refused only by a link whose target is gone already.
                let _ = sys::link_detach(link.as_fd());
                fs::remove_file(path).map_err(|e| Error::pin(path, e))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::pin(path, e)),
        }
    }

    fn error(&self, source: io::Error) -> Error {
        Error::Link { path: self.path.into(), source }
    }
}
