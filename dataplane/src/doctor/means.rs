//! The means besides eBPF: iptables, tried in a throw-away network namespace.

use std::{env, os::fd::AsFd as _};

use culvert_bpf::doctor::{Finding, Group, Need, Status};
use culvert_model::CaptureSettings;

use crate::capture::iptables::{self, IptablesError, Rules};

pub(super) fn examine() -> [Finding; 2] {
    [iptables(), nft()]
}

fn iptables() -> Finding {
    let (status, found) = match culvert_bpf::throwaway_netns() {
        Err(error) => (Status::Unknown, format!("no network namespace to try it in: {error}")),
        Ok(netns) => {
            let settings = CaptureSettings::default();
            // Any ports: the rules are only tested.
            let rules = Rules { outbound_port: Some(15_001), inbound_port: Some(15_006), settings };
            match iptables::plan(netns.as_fd(), &rules) {
                Ok(plan) => {
                    let families = if plan.has_v6 { "IPv4 and IPv6" } else { "IPv4; the kernel has no IPv6" };
                    (Status::Ok, format!("{} accepts the rules, {families}", plan.variant.name()))
                }
                Err(IptablesError::Unusable(why)) => (Status::Missing, why),
                Err(error) => (Status::Missing, error.to_string()),
            }
        }
    };
    Finding::new(Group::Capture, "iptables", status, found)
        .meaning(
            "--capture iptables: REDIRECT rules in strict pods",
            "no capture by iptables (install the iptables package)",
        )
        .needed(Need::Iptables)
}

fn nft() -> Finding {
    let found = env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join("nft"))
        .find(|path| path.is_file());
    let (status, found) = match found {
        Some(path) => (Status::Ok, path.display().to_string()),
        None => (Status::Missing, "not in PATH".to_owned()),
    };
    Finding::new(Group::Capture, "nft", status, found)
        .meaning("nothing: rules are made by iptables and tables removed through netlink", "nothing")
}
