//! The self-test of splicing: it passes where splicing is sound, and notices what is made to go wrong. Needs root.

mod support;

use std::{collections::BTreeSet, fs, path::PathBuf};

use culvert_bpf::{
    SpliceConfig,
    selftest::{Fault, Property, SelfTest, SelfTestReport, selftest},
};

fn test(fault: Option<Fault>) -> SelfTest {
    SelfTest { limit: SpliceConfig::default().limit, cgroup: None, fault }
}

/// Whether splicing has to be sound here: before Linux 6.13 that depends on what was backported.
fn is_recent() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(13))
}

/// What the self-test says where splicing is sound. Where an older kernel lacks what it takes, the running test is skipped.
fn sound() -> Option<SelfTestReport> {
    let report = selftest(&test(None));
    if !is_recent()
        && let Some(failure) = report.failure()
    {
        // What old kernels lack: programs' access to sockets, a FIONREAD that sees redirected bytes, the charge for them.
        let known = [
            Property::Setup,
            Property::Enrolment,
            Property::Fionread,
            Property::Accounting,
            Property::SmallMessages,
            Property::Deadline,
        ];
        assert!(known.contains(&failure.property), "{failure:?}");
        support::skip(&format!("splicing is not sound here: {}: {}", failure.property, failure.detail));
        return None;
    }
    Some(report)
}

/// What no kernel known today has, and what keeps splicing off under `auto`: a socket in any sockmap fails a `recv` that
/// waits with EAGAIN when it is woken for nothing.
const OPEN: [Property; 1] = [Property::SpuriousWakeup];

fn is_sound(report: &SelfTestReport) -> bool {
    report.failure().is_none_or(|failure| OPEN.contains(&failure.property))
}

#[test]
fn splicing_is_sound_on_this_kernel() {
    let Some(report) = sound() else { return };
    assert!(is_sound(&report), "{report:#?}");
    let tested: Vec<Property> = report.checks.iter().map(|check| check.property).collect();
    let all = Property::ALL.into_iter().filter(|it| !matches!(it, Property::Setup | Property::Deadline));
    assert_eq!(tested, all.collect::<Vec<_>>());
    assert!(report.checks.iter().all(|check| !check.detail.is_empty()));
}

/// On kernels whose FIONREAD needs the verdict; on others its absence is no fault.
#[test]
fn a_count_of_waiting_bytes_that_is_wrong_is_noticed() {
    let Some(sound) = sound() else { return };
    let needed = sound.verdict;
    let report = selftest(&test(Some(Fault::NoVerdict)));
    assert!(!report.verdict);
    if needed {
        let failure = report.failure().unwrap();
        assert_eq!(failure.property, Property::Fionread, "{report:#?}");
        assert!(failure.detail.contains("it says 0 for 10 bytes by TCP"), "{failure:?}");
    } else {
        assert!(is_sound(&report), "{report:#?}");
    }
}

#[test]
fn a_bound_that_does_not_hold_is_noticed() {
    if sound().is_none() {
        return;
    }
    let report = selftest(&test(Some(Fault::NoLimit)));
    let failure = report.failure().unwrap();
    assert_eq!(failure.property, Property::BoundToProxy, "{report:#?}");
    assert!(failure.detail.contains("more than 262144"), "{failure:?}");
}

#[test]
fn other_limits_are_tested_as_they_are() {
    if sound().is_none() {
        return;
    }
    for limit in [16 << 10, 1 << 20] {
        let report = selftest(&SelfTest { limit, ..test(None) });
        assert!(is_sound(&report), "{limit}: {report:#?}");
    }
}

#[test]
fn what_cannot_be_set_up_is_named() {
    let report = selftest(&SelfTest { cgroup: Some("/sys/fs/bpf".into()), ..test(None) });
    let failure = report.failure().unwrap();
    if failure.property == Property::Deadline {
        return support::skip("the machine is too slow for the self-test");
    }
    assert_eq!(failure.property, Property::Setup);
    assert!(failure.detail.contains("a cgroup in /sys/fs/bpf"), "{failure:?}");
}

#[test]
fn nothing_remains() {
    let traces = || -> BTreeSet<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let points = mounts.lines().filter(|line| line.contains(" cgroup2 ") || line.contains(" bpf "));
        let points = points.filter_map(|line| line.split(' ').nth(1));
        let own = format!("culvert-probe-{}-", std::process::id());
        let left = points.flat_map(|point| fs::read_dir(point).unwrap().flatten()).map(|entry| entry.path());
        left.filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with(&own) || name.starts_with("culvert-selftest")
        })
        .collect()
    };
    let before = traces();
    selftest(&test(None));
    // Of the tests that run beside this one some may be at it, or, on a slow machine, what they have given up on.
    let until = std::time::Instant::now() + support::HANG_GUARD;
    while !traces().is_subset(&before) && std::time::Instant::now() < until {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(traces().is_subset(&before), "{:?}", traces());
}
