//! What the programs say: into the log of the process, component `bpf`.

use std::fmt;

use aya::{
    Ebpf,
    maps::{MapData, MapError, PerCpuArray},
};
use aya_log::EbpfLogger;
use log::Log;

use crate::Error;

/// Where the programs count what they leave out, and the word of its value that has it.
const SAID: &str = "SAID";
const LEFT_OUT: usize = 3;

/// The programs' messages, those of programs that an earlier process loaded included. They are rate limited where they are
/// made, and the ring they wait in has room for a few hundred; what does not fit is lost.
pub(crate) struct ProgramLog {
    logger: EbpfLogger<&'static dyn Log>,
    said: PerCpuArray<MapData, [u32; 4]>,
    /// What was left out and has been told of.
    told: u32,
}

impl ProgramLog {
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let logger = EbpfLogger::init(ebpf).map_err(|e| Error::program("log", &e))?;
        let map = ebpf
            .take_map(SAID)
            .ok_or_else(|| Error::map(SAID, MapError::InvalidName { name: SAID.into() }))?;
        let said = PerCpuArray::try_from(map).map_err(|e| Error::map(SAID, e))?;
        let mut log = Self { logger, said, told: 0 };
        log.told = log.left_out();
        Ok(log)
    }

    /// Logs what has been said since the last call, and how much was left out.
    pub(crate) fn drain(&mut self) {
        self.logger.flush();
        let left_out = self.left_out();
        let news = left_out.wrapping_sub(self.told);
        if news > 0 {
            log::warn!("{news} messages of the eBPF programs were left out: there are a few each second");
            self.told = left_out;
        }
    }

    /// By all processors, since the map was made.
    fn left_out(&self) -> u32 {
        let counts = self
            .said
            .get(&0, 0)
            .map(|counts| counts.iter().map(|said| said[LEFT_OUT]).fold(0, u32::wrapping_add));
        counts.unwrap_or(self.told)
    }
}

impl fmt::Debug for ProgramLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgramLog").finish_non_exhaustive()
    }
}
