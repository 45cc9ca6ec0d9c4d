//! The self-test of splicing, as findings.

use culvert_bpf::{
    doctor::{Finding, Group, Status},
    selftest::{Property, SelfTestReport},
};

const COST: &str = "no splicing: pod-local connections go through the whole stack";

/// One for each property, and one for what is attached because of them.
pub(super) fn findings(report: &SelfTestReport) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        Property::ALL.iter().map(|&property| finding(report, property)).collect();
    let verdict = match report.verdict {
        true => "attached: FIONREAD needs it on this kernel",
        false => "not needed on this kernel",
    };
    if report.passed() {
        findings.push(
            Finding::new(Group::Splice, "verdict", Status::Ok, verdict)
                .meaning("a program that lets everything pass and costs a little for each message", ""),
        );
    }
    findings
}

fn finding(report: &SelfTestReport, property: Property) -> Finding {
    let check = report.checks.iter().find(|check| check.property == property);
    let (status, found) = match (check, report.failure()) {
        (Some(check), _) if check.passed => (Status::Ok, check.detail.clone()),
        (Some(check), _) => (Status::Missing, check.detail.clone()),
        // What is in the report only when it fails.
        (None, None) => (Status::Ok, format!("after {} ms", report.elapsed.as_millis())),
        (None, Some(_)) if property == Property::Setup => (Status::Ok, "done".to_owned()),
        (None, Some(failed)) => (Status::Unknown, format!("not tested: {} failed", failed.property)),
    };
    Finding::new(Group::Splice, property.name(), status, found).meaning(property.meaning(), COST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_bpf::selftest::Check;

    fn report(checks: &[(Property, bool)]) -> SelfTestReport {
        let check =
            |&(property, passed): &(Property, bool)| Check { property, passed, detail: "seen".to_owned() };
        SelfTestReport {
            checks: checks.iter().map(check).collect(),
            verdict: true,
            elapsed: std::time::Duration::from_millis(90),
        }
    }

    fn status(findings: &[Finding], key: &str) -> Option<Status> {
        findings.iter().find(|finding| finding.key == key).map(|finding| finding.status)
    }

    #[test]
    fn what_failed_is_told_from_what_was_not_tested() {
        let findings = findings(&report(&[(Property::Enrolment, true), (Property::Fionread, false)]));
        assert_eq!(status(&findings, "setup"), Some(Status::Ok));
        assert_eq!(status(&findings, "enrolment"), Some(Status::Ok));
        assert_eq!(status(&findings, "fionread"), Some(Status::Missing));
        assert_eq!(status(&findings, "order"), Some(Status::Unknown));
        assert_eq!(status(&findings, "verdict"), None);
    }

    #[test]
    fn the_verdict_is_named_where_all_is_well() {
        let findings = findings(&report(&[(Property::Enrolment, true)]));
        assert_eq!(status(&findings, "verdict"), Some(Status::Ok));
        assert_eq!(status(&findings, "deadline"), Some(Status::Ok));
        assert!(findings.iter().all(|finding| finding.status == Status::Ok));
    }
}
