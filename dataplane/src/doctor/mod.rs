//! `culvert doctor`: what this machine allows, what Culvert will use of it, and what each missing piece costs.

mod means;
mod process;
mod report;
mod splice;

use culvert_bpf::{
    SpliceConfig,
    doctor::{self as kernel, Finding, Need, Status},
    selftest::{SelfTest, SelfTestReport, selftest},
};
use culvert_ring::{IoChoice, Probe};

use crate::capture::CaptureMode;

pub use report::{json, table};

/// What is examined, and for which way of serving.
#[derive(Clone, Debug)]
pub struct Options {
    /// The way of capture that has to work; `None`: any that takes over pods.
    pub capture: Option<CaptureMode>,
    /// Where capture would keep its state and be attached.
    pub bpf: culvert_bpf::CaptureConfig,
}

/// What an examination has found.
#[derive(Clone, Debug)]
pub struct Examination {
    /// As asked.
    pub capture: Option<CaptureMode>,
    /// Everything that was found, by group.
    pub findings: Vec<Finding>,
    /// What each way of capture lacks; empty when it works. The best first.
    pub modes: Vec<(CaptureMode, Vec<String>)>,
    /// The driver that workers would use.
    pub io: Probe,
    /// Whether splicing keeps what it must.
    pub splice: SelfTestReport,
}

/// Examines the machine. Blocks for a fraction of a second and leaves nothing behind.
pub fn examine(options: &Options) -> Examination {
    let io = culvert_ring::probe(IoChoice::Auto).unwrap_or_else(|error| Probe {
        driver: culvert_ring::DriverKind::Epoll,
        tier: "epoll",
        reason: error.to_string(),
    });
    // Before any of them is raised.
    let mut findings = Vec::from(process::limits());
    findings.push(process::driver(&io));
    findings.extend(kernel::examine(&options.bpf));
    findings.extend(means::examine());
    findings.extend(process::sysctls());
    let limit = SpliceConfig::default().limit;
    let splice = selftest(&SelfTest { limit, cgroup: options.bpf.cgroup.clone(), fault: None });
    findings.extend(splice::findings(&splice));
    findings.sort_by_key(|finding| finding.group);
    let modes = [CaptureMode::Ebpf, CaptureMode::Iptables, CaptureMode::None];
    let modes = modes.map(|mode| (mode, lacking(&findings, mode))).into();
    Examination { capture: options.capture, findings, modes, io, splice }
}

/// What stands in the way of a way of capture.
fn lacking(findings: &[Finding], mode: CaptureMode) -> Vec<String> {
    let needs = |need: Need| match need {
        Need::None => false,
        Need::Ebpf => mode == CaptureMode::Ebpf,
        Need::Iptables => mode == CaptureMode::Iptables,
        Need::Capture => mode != CaptureMode::None,
        Need::Serving => true,
    };
    let lacking = findings.iter().filter(|finding| needs(finding.need) && !finding.is_usable());
    lacking.map(|finding| format!("{}.{}", finding.group.name(), finding.key)).collect()
}

impl Examination {
    /// The way of capture that Culvert can serve with: the one asked for, or the best that takes over pods.
    pub fn chosen(&self) -> Option<CaptureMode> {
        let works = |mode: CaptureMode| match self.capture {
            Some(asked) => mode == asked,
            None => mode != CaptureMode::None,
        };
        self.modes.iter().find(|(mode, lacking)| works(*mode) && lacking.is_empty()).map(|(mode, _)| *mode)
    }

    /// Why Culvert cannot serve as asked; `None` when it can.
    pub fn refusal(&self) -> Option<String> {
        if self.chosen().is_some() {
            return None;
        }
        let lacking = |asked: CaptureMode| {
            let lacking =
                self.modes.iter().find(|(mode, _)| *mode == asked).map(|(_, lacking)| lacking.join(", "));
            lacking.unwrap_or_default()
        };
        Some(match self.capture {
            Some(mode) => format!("cannot serve with --capture {mode}: missing {}", lacking(mode)),
            None => format!(
                "cannot take over pods: --capture ebpf lacks {}; --capture iptables lacks {}",
                lacking(CaptureMode::Ebpf),
                lacking(CaptureMode::Iptables)
            ),
        })
    }

    /// How many findings have this verdict.
    fn count(&self, status: Status) -> usize {
        self.findings.iter().filter(|finding| finding.status == status).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_bpf::doctor::Group;

    fn examination(capture: Option<CaptureMode>, findings: Vec<Finding>) -> Examination {
        let modes = [CaptureMode::Ebpf, CaptureMode::Iptables, CaptureMode::None];
        let modes = modes.map(|mode| (mode, lacking(&findings, mode))).into();
        let io =
            Probe { driver: culvert_ring::DriverKind::Epoll, tier: "epoll", reason: "asked for".to_owned() };
        let splice =
            SelfTestReport { checks: Vec::new(), verdict: false, elapsed: std::time::Duration::ZERO };
        Examination { capture, findings, modes, io, splice }
    }

    fn finding(key: &'static str, status: Status, need: Need) -> Finding {
        Finding::new(Group::Capture, key, status, "").needed(need)
    }

    #[test]
    fn the_best_way_that_works_is_chosen() {
        let all =
            || vec![finding("ebpf", Status::Ok, Need::Ebpf), finding("iptables", Status::Ok, Need::Iptables)];
        assert_eq!(examination(None, all()).chosen(), Some(CaptureMode::Ebpf));
        assert_eq!(examination(Some(CaptureMode::Iptables), all()).chosen(), Some(CaptureMode::Iptables));

        let degraded = vec![finding("ebpf", Status::Degraded, Need::Ebpf)];
        assert_eq!(examination(None, degraded).chosen(), Some(CaptureMode::Ebpf));

        let one =
            || vec![finding("ebpf", Status::Missing, Need::Ebpf), finding("x", Status::Missing, Need::None)];
        assert_eq!(examination(None, one()).chosen(), Some(CaptureMode::Iptables));
        let refusal = examination(Some(CaptureMode::Ebpf), one()).refusal().unwrap();
        assert_eq!(refusal, "cannot serve with --capture ebpf: missing capture.ebpf");
    }

    #[test]
    fn not_capturing_is_no_way_of_taking_over_pods() {
        let none = || vec![finding("caps", Status::Unknown, Need::Capture)];
        let refusal = examination(None, none()).refusal().unwrap();
        assert!(
            refusal.contains("ebpf lacks capture.caps; --capture iptables lacks capture.caps"),
            "{refusal}"
        );
        assert_eq!(examination(Some(CaptureMode::None), none()).refusal(), None);
    }
}
