//! `culvert doctor`.

use std::io::{self, Write as _};

use anyhow::bail;
use culvert::{
    capture::CaptureMode,
    cli::{self, Doctor},
    doctor::{self, Options},
};

/// Examines the machine. It is an error when Culvert could not serve as asked.
pub(super) fn run(doctor: &Doctor) -> anyhow::Result<()> {
    let examination = doctor::examine(&Options {
        capture: match doctor.capture {
            cli::DoctorCapture::Auto => None,
            cli::DoctorCapture::Ebpf => Some(CaptureMode::Ebpf),
            cli::DoctorCapture::Iptables => Some(CaptureMode::Iptables),
            cli::DoctorCapture::None => Some(CaptureMode::None),
        },
        bpf: culvert_bpf::CaptureConfig { pin_dir: doctor.bpf_dir.clone(), cgroup: doctor.cgroup.clone() },
    });
    let out = &mut io::stdout().lock();
    if doctor.json {
        writeln!(out, "{:#}", doctor::json(&examination))?;
    } else {
        doctor::table(&examination, out)?;
    }
    out.flush()?;
    match examination.refusal() {
        None => Ok(()),
        Some(refusal) => bail!(refusal),
    }
}
