//! Unrelated iptables rules, as a node full of services has them.

use super::{LabError, NetNs, tool};

const CHAIN: &str = "BENCH-FILLER";

/// Which iptables is meant: the two have separate rule sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// xtables in the kernel.
    Legacy,
    /// nftables.
    Nft,
}

impl Backend {
    /// The backend that holds the namespace's REDIRECT rules; without any, the one plain `iptables` is.
    ///
    /// # Errors
    /// When the namespace cannot be entered or iptables is not installed.
    pub fn in_use(netns: &NetNs) -> Result<Self, LabError> {
        for backend in [Self::Legacy, Self::Nft] {
            let rules = netns.within(|| tool::run(backend.save(), &["-t", "nat"]))?;
            if rules.is_ok_and(|rules| rules.contains("-j REDIRECT")) {
                return Ok(backend);
            }
        }
        let version = tool::run("iptables", &["--version"])?;
        Ok(if version.contains("legacy") { Self::Legacy } else { Self::Nft })
    }

    fn save(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy-save",
            Self::Nft => "iptables-nft-save",
        }
    }

    fn restore(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy-restore",
            Self::Nft => "iptables-nft-restore",
        }
    }
}

/// Puts `count` rules that match nothing in front of everything in the namespace's nat OUTPUT chain; each new
/// connection is compared with all of them. They go when the namespace goes.
///
/// # Errors
/// When the namespace cannot be entered or iptables refuses.
pub fn add_filler(netns: &NetNs, backend: Backend, count: u32) -> Result<(), LabError> {
    let rules = filler(count);
    netns.within(|| tool::run_with_input(backend.restore(), &["--noflush"], &rules))?.map(drop)
}

fn filler(count: u32) -> String {
    let mut text = format!("*nat\n:{CHAIN} - [0:0]\n-I OUTPUT 1 -j {CHAIN}\n");
    for index in 0..count {
        // 203.0.113.0/24 and port 81: TEST-NET-3, where nothing lives (RFC 5737).
        let (host, port) = (index % 256, 81 + index / 256);
        text.push_str(&format!("-A {CHAIN} -p tcp -d 203.0.113.{host}/32 --dport {port} -j RETURN\n"));
    }
    text.push_str("COMMIT\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filler_rules_come_first_and_are_all_there() {
        if super::super::require_root().is_err() {
            return;
        }
        let netns = NetNs::create("filler").expect("netns");
        for backend in [Backend::Legacy, Backend::Nft] {
            if tool::run(backend.save(), &["--version"]).is_err() {
                continue;
            }
            let redirect = "*nat\n-A OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports 15001\nCOMMIT\n";
            let set = netns.within(|| tool::run_with_input(backend.restore(), &["--noflush"], redirect));
            set.expect("enter").expect("restore");
            assert_eq!(Backend::in_use(&netns).expect("backend"), backend);

            add_filler(&netns, backend, 300).expect("filler");
            let rules =
                netns.within(|| tool::run(backend.save(), &["-t", "nat"])).expect("enter").expect("save");
            let output: Vec<&str> = rules.lines().filter(|line| line.starts_with("-A OUTPUT")).collect();
            assert!(output[0].ends_with(CHAIN) && output[1].contains("REDIRECT"), "{rules}");
            assert_eq!(rules.lines().filter(|line| line.starts_with(&format!("-A {CHAIN}"))).count(), 300);
            netns
                .within(|| tool::run_with_input(backend.restore(), &[], "*nat\nCOMMIT\n"))
                .expect("enter")
                .expect("flush");
        }
    }
}
