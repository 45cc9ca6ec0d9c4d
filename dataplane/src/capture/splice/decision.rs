//! Whether connections are spliced: what was asked for, and what the self-test of the running kernel says.

use std::path::Path;

use culvert_bpf::{
    SpliceConfig,
    selftest::{Property, SelfTest, SelfTestReport, selftest},
};

use super::{SpliceMode, SpliceSettings};
use crate::observe::stats::{Sample, StatSet};

/// Whether connections are spliced, how, and why or why not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decision {
    /// Whether they are.
    pub on: bool,
    /// How the programs are to be loaded.
    pub programs: SpliceConfig,
    /// Whether capture must not start without.
    pub insists: bool,
    /// For a person.
    pub reason: String,
    /// What the self-test has found; `None` when there was none.
    pub selftest: Option<SelfTestReport>,
}

impl Decision {
    /// Not spliced, and no self-test.
    pub fn off(reason: &str) -> Self {
        let (programs, reason) = (SpliceConfig::default(), reason.to_owned());
        Self { on: false, programs, insists: false, reason, selftest: None }
    }
}

/// Why `auto` does not splice although the self-test passed. Whether a wake-up for nothing meets a `recv` that waits is a
/// matter of luck, so that the test may miss what applications will not.
const NOT_SOUND: &str = "the self-test passed, but a recv that waits in a spliced socket may fail with EAGAIN on every kernel \
                         known today";

/// Decides whether the running kernel is to splice. `auto` asks the self-test, which takes a fraction of a second, and is off
/// also when that passes, until applications that block are safe; `on` asks it to learn how the programs have to be loaded,
/// and is on whatever it says. `cgroup` is the one that capture is attached to; `None`: the root of the hierarchy.
pub fn decide(settings: &SpliceSettings, cgroup: Option<&Path>) -> Decision {
    if settings.mode == SpliceMode::Off {
        return Decision::off("--splice off");
    }
    let test = SelfTest { limit: settings.limit, cgroup: cgroup.map(Path::to_owned), fault: None };
    judge(settings, selftest(&test))
}

fn judge(settings: &SpliceSettings, report: SelfTestReport) -> Decision {
    let failure =
        report.failure().map(|check| format!("self-test failed: {}: {}", check.property, check.detail));
    let (on, reason) = match (settings.mode, failure) {
        (SpliceMode::Auto, None) => (false, NOT_SOUND.to_owned()),
        (SpliceMode::Auto, Some(failure)) => (false, failure),
        (SpliceMode::On, None) => {
            let how = if report.verdict { ", with the verdict that FIONREAD needs" } else { "" };
            (true, format!("asked for, and the self-test passed in {} ms{how}", report.elapsed.as_millis()))
        }
        (SpliceMode::On, Some(failure)) => (true, format!("asked for, although the {failure}")),
        (SpliceMode::Off, _) => (false, "--splice off".to_owned()),
    };
    // Without knowing better, the verdict does no harm.
    let verdict = report.verdict || !report.passed();
    let insists = settings.mode == SpliceMode::On;
    let programs = SpliceConfig { limit: settings.limit, verdict, blocking: insists };
    Decision { on, programs, insists, reason, selftest: Some(report) }
}

/// Scope `culvert.splice`: `state`, 1 when connections are spliced, and for each property of the self-test
/// `selftest_failed.<property>`, 1 when the kernel has not got it.
impl StatSet for Decision {
    fn visit(&self, f: &mut dyn FnMut(&str, Sample<'_>)) {
        f("state", flag(self.on));
        let failed = self.selftest.as_ref().and_then(SelfTestReport::failure).map(|check| check.property);
        for property in Property::ALL {
            let name = format!("selftest_failed.{property}");
            f(&name, flag(failed == Some(property)));
        }
    }
}

fn flag(on: bool) -> Sample<'static> {
    Sample::Flag { value: on.into(), used: true }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use culvert_bpf::selftest::Check;

    use super::*;

    fn report(failed: Option<Property>) -> SelfTestReport {
        let check =
            |property| Check { property, passed: Some(property) != failed, detail: "seen".to_owned() };
        let checks = [Property::Enrolment, Property::Fionread].map(check).into();
        SelfTestReport { checks, verdict: true, elapsed: Duration::from_millis(90) }
    }

    fn settings(mode: SpliceMode) -> SpliceSettings {
        SpliceSettings { mode, limit: 1000 }
    }

    fn shown(decision: &Decision) -> BTreeMap<String, i64> {
        let mut shown = BTreeMap::new();
        decision.visit(&mut |name, sample| {
            let Sample::Flag { value, used: true } = sample else { panic!("{name}: {sample:?}") };
            shown.insert(name.to_owned(), value);
        });
        shown
    }

    #[test]
    fn auto_is_off_and_says_why() {
        let passed = judge(&settings(SpliceMode::Auto), report(None));
        assert!(
            !passed.on && passed.programs == SpliceConfig { limit: 1000, verdict: true, blocking: false }
        );
        assert!(!passed.insists && passed.reason.contains("may fail with EAGAIN"), "{}", passed.reason);
        assert_eq!(shown(&passed).values().sum::<i64>(), 0, "nothing has failed");

        let off = judge(&settings(SpliceMode::Auto), report(Some(Property::Fionread)));
        assert!(!off.on);
        assert_eq!(off.reason, "self-test failed: fionread: seen");
        let shown = shown(&off);
        assert_eq!((shown["state"], shown["selftest_failed.fionread"]), (0, 1));
        assert_eq!(shown["selftest_failed.order"], 0);
        assert_eq!(shown.len(), 1 + Property::ALL.len());
    }

    #[test]
    fn on_insists_and_says_what_failed() {
        let on = judge(&settings(SpliceMode::On), report(Some(Property::Fionread)));
        assert!(on.on && on.insists && on.programs.verdict);
        assert_eq!(on.reason, "asked for, although the self-test failed: fionread: seen");
        assert_eq!(shown(&on)["selftest_failed.fionread"], 1);
    }

    #[test]
    fn off_is_off_without_a_test() {
        let off = decide(&settings(SpliceMode::Off), None);
        assert!(!off.on && off.selftest.is_none());
        assert_eq!(shown(&off).values().sum::<i64>(), 0);
    }

    #[test]
    fn the_verdict_is_left_out_where_it_is_not_needed() {
        let report = SelfTestReport { verdict: false, ..report(None) };
        assert!(!judge(&settings(SpliceMode::Auto), report).programs.verdict);
    }
}
