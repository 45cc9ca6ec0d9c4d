//! `--capture iptables`: REDIRECT rules inside a pod's network namespace, in chains of their own, committed at once and
//! removed without a trace. It is the fallback where eBPF is not to be had, and the yardstick where it is.
//!
//! The original destination is conntrack's (`SO_ORIGINAL_DST`). Without a proxy the rules stay and connections are
//! refused: there is no permissive iptables mode.

use std::{
    fmt, fs, io,
    io::Write,
    os::fd::{AsFd, BorrowedFd},
    process::{Command, Stdio},
};

use culvert_bpf::{PROXY_MARK, PROXY_MARK_MASK};
use culvert_model::CaptureSettings;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::capture::nftables::{self, NftFamily};

const OUTPUT_CHAIN: &str = "CULVERT_OUTPUT";
const INBOUND_CHAIN: &str = "CULVERT_INBOUND";
/// How long to wait for another program that changes rules, in seconds.
const LOCK_WAIT_S: &str = "10";

/// Why rules could not be set up or removed.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// The namespace could not be entered.
    #[error("enter the network namespace: {0}")]
    Enter(io::Error),
    /// Neither variant of iptables accepts the rules; the reasons, one per variant tried.
    #[error("no usable iptables ({0}); install the iptables package")]
    Unusable(String),
    /// A program could not be started, or refused.
    #[error("{program}: {reason}")]
    Failed {
        /// Its name.
        program: String,
        /// What it printed, or why it did not start.
        reason: String,
    },
}

/// Which kernel interface the iptables programs use.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// `iptables-legacy`: x_tables.
    Legacy,
    /// `iptables-nft`: nf_tables.
    Nft,
    /// Whatever `iptables` is, where the system has no names for the variants.
    Plain,
}

/// What must be known to remove rules without a trace. To be kept on disk before rules are installed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Plan {
    /// The programs to use.
    pub variant: Variant,
    /// There was no IPv4 `nat` table before.
    pub fresh_v4: bool,
    /// There was no IPv6 `nat` table before.
    pub fresh_v6: bool,
    /// The namespace has IPv6.
    pub has_v6: bool,
}

/// The rules of one pod.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Where outbound connections are turned; `None`: they are not.
    pub outbound_port: Option<u16>,
    /// Where inbound connections are turned; `None`: they are not.
    pub inbound_port: Option<u16>,
    /// What is never turned.
    pub settings: CaptureSettings,
}

/// Connections that met the rules, by what became of them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RuleCounters {
    /// Turned to an in-pod listener.
    pub captured: u64,
    /// Let pass by an exclusion. Loopback connections and the proxy's own are not counted.
    pub bypassed: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Family {
    V4,
    V6,
}

/// A connection that was there before the rules is new to conntrack, which takes it up in the middle: turning what is left
/// of it would be its end.
const UNDER_WAY: &str = "-p tcp ! --syn -j RETURN";

/// Finds the programs that accept the rules for this namespace, without installing any.
///
/// # Errors
/// [`IptablesError::Unusable`] with what each variant said.
pub fn plan(netns: BorrowedFd<'_>, rules: &Rules) -> Result<Plan, IptablesError> {
    enter(netns, || {
        let has_v6 = has_v6();
        let mut reasons = Vec::new();
        for variant in [Variant::Nft, Variant::Legacy, Variant::Plain] {
            match try_variant(variant, has_v6, rules) {
                Ok(plan) => return Ok(plan),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(IptablesError::Unusable(reasons.join("; ")))
    })
}

/// Installs the rules, or brings them to what they should be. Per family the change is one transaction.
///
/// # Errors
/// Of the programs; then nothing of this pod is left installed.
pub fn install(netns: BorrowedFd<'_>, plan: &Plan, rules: &Rules) -> Result<(), IptablesError> {
    let result = enter(netns, || {
        for family in plan.families() {
            let present = save(plan.variant, family, &["-t", "nat"])?;
            restore(plan.variant, family, &["--noflush"], &install_script(family, rules, &present))?;
        }
        Ok(())
    });
    if result.is_err() {
        // The error that matters is the first one.
        let _ = remove(netns, plan);
    }
    result
}

/// Ends the turning of new connections. The chains stay until [`remove`]: with the last rule that translates addresses
/// the kernel stops translating those of open connections too.
///
/// # Errors
/// Of the programs. Rules that are not there are no error.
pub fn unhook(netns: BorrowedFd<'_>, plan: &Plan) -> Result<(), IptablesError> {
    enter(netns, || {
        for family in plan.families() {
            let present = save(plan.variant, family, &["-t", "nat"])?;
            let jumps = [("OUTPUT", OUTPUT_CHAIN), ("PREROUTING", INBOUND_CHAIN)]
                .map(|(hook, chain)| removed_jumps(hook, chain, &present));
            commit(plan.variant, family, &jumps.concat())?;
        }
        Ok(())
    })
}

/// Removes the rules and chains, and the table if it came with them and holds nothing else.
///
/// # Errors
/// Of the programs. Rules that are not there are no error.
pub fn remove(netns: BorrowedFd<'_>, plan: &Plan) -> Result<(), IptablesError> {
    enter(netns, || {
        for family in plan.families() {
            remove_family(plan.variant, family, plan.is_fresh(family))?;
        }
        Ok(())
    })
}

/// Removes rules of which no plan is on record: looks for the chains in every variant that has a table here.
/// Says whether there were any.
///
/// # Errors
/// Of the programs.
pub fn purge(netns: BorrowedFd<'_>) -> Result<bool, IptablesError> {
    enter(netns, || {
        let mut found = false;
        for variant in [Variant::Nft, Variant::Legacy, Variant::Plain] {
            for family in [Family::V4, Family::V6] {
                // Looking at a legacy table creates it, so the kernel is asked first; a program that is not installed
                // has left nothing.
                if variant == Variant::Legacy && !legacy_table_exists(family) {
                    continue;
                }
                let Ok(present) = save(variant, family, &[]) else {
                    continue;
                };
                if present.contains(OUTPUT_CHAIN) || present.contains(INBOUND_CHAIN) {
                    remove_family(variant, family, false)?;
                    found = true;
                }
            }
        }
        Ok(found)
    })
}

/// Reads the rules' counters.
///
/// # Errors
/// Of the programs.
pub fn counters(netns: BorrowedFd<'_>, plan: &Plan) -> Result<RuleCounters, IptablesError> {
    enter(netns, || {
        let mut sum = RuleCounters::default();
        for family in plan.families() {
            let counted = parse_counters(&save(plan.variant, family, &["-c", "-t", "nat"])?);
            sum.captured += counted.captured;
            sum.bypassed += counted.bypassed;
        }
        Ok(sum)
    })
}

impl Plan {
    fn families(&self) -> impl Iterator<Item = Family> + use<> {
        [Some(Family::V4), self.has_v6.then_some(Family::V6)].into_iter().flatten()
    }

    fn is_fresh(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.fresh_v4,
            Family::V6 => self.fresh_v6,
        }
    }
}

fn try_variant(variant: Variant, has_v6: bool, rules: &Rules) -> Result<Plan, IptablesError> {
    let mut plan = Plan { variant, fresh_v4: false, fresh_v6: false, has_v6 };
    for family in plan.families() {
        let tables = match variant {
            // Only nf_tables gives tables back; what legacy has created stays until the namespace goes.
            Variant::Legacy => String::from("*nat"),
            Variant::Nft | Variant::Plain => save(variant, family, &[])?,
        };
        let is_fresh = !tables.contains("*nat");
        match family {
            Family::V4 => plan.fresh_v4 = is_fresh,
            Family::V6 => plan.fresh_v6 = is_fresh,
        }
        restore(variant, family, &["--test", "--noflush"], &install_script(family, rules, &tables))?;
    }
    Ok(plan)
}

/// One transaction from whatever is `present` (as `iptables-save` prints it) to exactly the rules wanted.
fn install_script(family: Family, rules: &Rules, present: &str) -> String {
    let mut script = String::from("*nat\n");
    let wanted = [
        ("OUTPUT", OUTPUT_CHAIN, rules.outbound_port.map(|port| outbound_rules(family, port, rules))),
        ("PREROUTING", INBOUND_CHAIN, rules.inbound_port.map(|port| inbound_rules(port, rules))),
    ];
    for (hook, chain, lines) in wanted {
        let Some(lines) = lines else {
            script.push_str(&removal(hook, chain, present));
            continue;
        };
        // Declaring a chain flushes it if it is there.
        script.push_str(&format!(":{chain} - [0:0]\n"));
        for line in lines {
            script.push_str(&format!("-A {chain} {line}\n"));
        }
        if !present.lines().any(|line| is_jump(line, hook, chain)) {
            script.push_str(&format!("-A {hook} -p tcp -j {chain}\n"));
        }
    }
    script.push_str("COMMIT\n");
    script
}

fn outbound_rules(family: Family, port: u16, rules: &Rules) -> Vec<String> {
    let mut lines = vec![
        UNDER_WAY.to_owned(),
        format!("-m mark --mark {PROXY_MARK:#x}/{PROXY_MARK_MASK:#x} -j RETURN"),
        // Loopback, and the pod's own addresses, which are routed there.
        "-o lo -j RETURN".to_owned(),
    ];
    if family == Family::V6 {
        // A link-local destination means nothing without its interface, which a redirected connection has lost.
        lines.push("-d fe80::/10 -j RETURN".to_owned());
    }
    let nets = rules.settings.exclude_outbound_cidrs.iter().filter(|net| family.has(net));
    lines.extend(nets.map(|net| format!("-d {net} -j RETURN")));
    lines.extend(
        rules.settings.exclude_outbound_ports.iter().map(|port| format!("-p tcp --dport {port} -j RETURN")),
    );
    lines.push(format!("-p tcp -j REDIRECT --to-ports {port}"));
    lines
}

fn inbound_rules(port: u16, rules: &Rules) -> Vec<String> {
    let mut lines = vec![UNDER_WAY.to_owned(), "-i lo -j RETURN".to_owned()];
    lines.extend(
        rules.settings.exclude_inbound_ports.iter().map(|port| format!("-p tcp --dport {port} -j RETURN")),
    );
    // A pod may be a router; what it forwards is not addressed to it.
    lines.push(format!("-p tcp -m addrtype --dst-type LOCAL -j REDIRECT --to-ports {port}"));
    lines
}

/// Changes the `nat` table by these lines, if there are any.
fn commit(variant: Variant, family: Family, lines: &str) -> Result<(), IptablesError> {
    if lines.is_empty() {
        return Ok(());
    }
    restore(variant, family, &["--noflush"], &format!("*nat\n{lines}COMMIT\n"))
}

fn remove_family(variant: Variant, family: Family, is_fresh: bool) -> Result<(), IptablesError> {
    let present = save(variant, family, &["-t", "nat"])?;
    let lines = removal("OUTPUT", OUTPUT_CHAIN, &present) + &removal("PREROUTING", INBOUND_CHAIN, &present);
    commit(variant, family, &lines)?;
    if is_fresh && is_bare(&save(variant, family, &[])?) {
        // Nothing depends on it any more. A table that somebody deleted meanwhile is what was wanted.
        let family = if family == Family::V4 { NftFamily::Ip } else { NftFamily::Ip6 };
        if let Err(error) = nftables::delete_table(family, "nat") {
            log::debug!("iptables: an empty nat table stays behind: {error}");
        }
    }
    Ok(())
}

/// The lines that remove a chain and the jumps to it, as far as they are present.
fn removal(hook: &str, chain: &str, present: &str) -> String {
    let mut script = removed_jumps(hook, chain, present);
    if present.lines().any(|line| line.starts_with(&format!(":{chain} "))) {
        script.push_str(&format!("-F {chain}\n-X {chain}\n"));
    }
    script
}

/// The lines that remove the jumps to a chain, as far as they are present.
fn removed_jumps(hook: &str, chain: &str, present: &str) -> String {
    let jumps = present.lines().filter(|line| is_jump(line, hook, chain));
    jumps.map(|line| line.replacen("-A ", "-D ", 1) + "\n").collect()
}

fn is_jump(line: &str, hook: &str, chain: &str) -> bool {
    line.strip_prefix("-A ").and_then(|rest| rest.strip_prefix(hook)).is_some_and(|rest| {
        rest.starts_with(' ')
            && rest.split_ascii_whitespace().skip_while(|word| *word != "-j").nth(1) == Some(chain)
    })
}

/// Whether the `nat` table is there and holds nothing but the built-in chains, empty and accepting.
fn is_bare(saved: &str) -> bool {
    let Some((_, nat)) = saved.split_once("*nat\n") else {
        return false;
    };
    let nat = nat.split("COMMIT").next().unwrap_or_default();
    nat.lines().all(|line| line.starts_with(':') && line.contains(" ACCEPT "))
}

fn parse_counters(saved: &str) -> RuleCounters {
    let mut counters = RuleCounters::default();
    for line in saved.lines() {
        let Some((packets, rule)) = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else {
            continue;
        };
        let packets: u64 = packets.split(':').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let is_ours =
            [OUTPUT_CHAIN, INBOUND_CHAIN].iter().any(|chain| rule.starts_with(&format!("-A {chain} ")));
        // nat chains see the first packet of a connection only, so packets are connections.
        match is_ours {
            true if rule.contains("-j REDIRECT") => counters.captured += packets,
            true if [" -d ", "--dport"].iter().any(|part| rule.contains(part)) => {
                counters.bypassed += packets;
            }
            _ => {}
        }
    }
    counters
}

fn has_v6() -> bool {
    // Absent when the kernel has no IPv6; with it disabled, no interface has an address, not even loopback.
    fs::read_to_string("/proc/thread-self/net/if_inet6").is_ok_and(|text| !text.trim().is_empty())
}

fn legacy_table_exists(family: Family) -> bool {
    let names = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == "nat"))
}

/// Runs inside the namespace. Programs started there by the same thread are in it too.
fn enter<T>(
    netns: BorrowedFd<'_>,
    run: impl FnOnce() -> Result<T, IptablesError>,
) -> Result<T, IptablesError> {
    culvert_ring::net::in_netns(netns.as_fd(), run).map_err(IptablesError::Enter)?
}

fn save(variant: Variant, family: Family, arguments: &[&str]) -> Result<String, IptablesError> {
    run(&variant.program(family, "save"), arguments, None)
}

fn restore(variant: Variant, family: Family, arguments: &[&str], script: &str) -> Result<(), IptablesError> {
    let program = variant.program(family, "restore");
    run(&program, &[&["--wait", LOCK_WAIT_S], arguments].concat(), Some(script)).map(drop)
}

fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String, IptablesError> {
    let failed = |reason: String| IptablesError::Failed { program: program.to_owned(), reason };
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A program that exits early says why on stderr; that is worth more than the broken pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().find(|line| !line.starts_with('#')).unwrap_or_default().trim();
        return Err(failed(if said.is_empty() { output.status.to_string() } else { said.to_owned() }));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Family {
    fn has(self, net: &IpNet) -> bool {
        matches!((self, net), (Self::V4, IpNet::V4(_)) | (Self::V6, IpNet::V6(_)))
    }
}

impl Variant {
    /// The name of the programs of this variant, IPv4.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy",
            Self::Nft => "iptables-nft",
            Self::Plain => "iptables",
        }
    }

    fn program(self, family: Family, action: &str) -> String {
        let base = if family == Family::V4 { "iptables" } else { "ip6tables" };
        match self {
            Self::Plain => format!("{base}-{action}"),
            variant => format!("{base}-{variant}-{action}"),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
            Self::Plain => "plain",
        })
    }
}

#[cfg(test)]
mod tests;
