//! What the programs say: into the log of the process, component `bpf`.

use std::fmt;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::Log;

use crate::Error;

/// The programs' messages, those of programs that an earlier process loaded included. They are rate limited where they are
/// made, and the ring they wait in has room for a few hundred; what does not fit is lost.
pub(crate) struct ProgramLog(EbpfLogger<&'static dyn Log>);

impl ProgramLog {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let logger = EbpfLogger::init(ebpf).map_err(|e| Error::program("log", &e))?;
        Ok(Self(logger))
    }

    /// Logs what has been said since the last call. Without news it costs a look at shared memory.
    pub(crate) fn drain(&mut self) {
        self.0.flush();
    }
}

impl fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramLog").finish_non_exhaustive()
    }
}
