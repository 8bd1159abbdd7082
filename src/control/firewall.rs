//! Adit's own nftables table: packets to VIPs are not tracked by conntrack.
//!
//! Under direct return the director sees one half of each TCP session, which conntrack calls
//! INVALID, and firewalls drop. The rules stand before `nf_defrag` (priority -400), for otherwise
//! fragments would be put together again before they reach the TAP, and a datagram larger than
//! its MTU would not fit.
//!
//! The table has no verdicts of its own: it cannot override a drop in another table, so `adit
//! check` prints the accept rules a host needs. Adit's probes of real servers leave by the output
//! hook and stay tracked.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::IpAddr;
use std::process::{Command, Stdio};

/// Before `NF_IP_PRI_CONNTRACK_DEFRAG` (-400): what the kernel calls
/// `NF_IP_PRI_RAW_BEFORE_DEFRAG`.
const PRIORITY: i32 = -450;

/// Why the rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// `nft` is not there or not executable.
    #[error(
        "cannot run nft: {0}; install the nftables package: without its rules a stateful firewall \
         drops one-sided TCP as invalid"
    )]
    Start(#[source] io::Error),
    /// The kernel has no nf_tables for the family `inet`.
    #[error("this kernel cannot have Adit's notrack rules: it has no nf_tables of family inet")]
    NoTables,
    /// `nft` did not take the rules.
    #[error("nft refuses Adit's rules: {0}")]
    Refused(String),
}

/// What the rules are about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The TAP's name, which also names the table.
    pub tap: String,
    /// The client-facing interface.
    pub interface: String,
    /// Every VIP.
    pub vips: Vec<IpAddr>,
}

impl Rules {
    /// Name of the table in the `inet` family.
    #[must_use]
    pub fn table(&self) -> String {
        table_name(&self.tap)
    }

    /// Puts the rules in force, in one transaction: there is no moment without them. Doing it
    /// twice is the same as once.
    ///
    /// # Errors
    /// When `nft` is missing or refuses.
    pub fn apply(&self) -> Result<(), FirewallError> {
        run_nft(&self.script())
    }

    /// The transaction: make the table if need be, so that deleting it cannot fail, and make it
    /// anew.
    fn script(&self) -> String {
        let Rules { tap, interface, .. } = self;
        let table = self.table();
        let mut rules = String::new();
        for (family, vips) in [("ip", self.family(true)), ("ip6", self.family(false))] {
            if vips.is_empty() {
                continue;
            }
            let vips = vips.join(", ");
            for rule in [
                // What clients send.
                format!("iifname \"{interface}\" {family} daddr {{ {vips} }} notrack"),
                // What Adit answers in the VIP's name: ICMP errors and resets about flows that
                // conntrack does not know would be invalid too.
                format!("iifname \"{tap}\" {family} saddr {{ {vips} }} notrack"),
            ] {
                // Writing to a String cannot fail.
                let _ = writeln!(rules, "    {rule}");
            }
        }
        format!(
            "table inet {table} {{}}\n\
             delete table inet {table}\n\
             table inet {table} {{\n  \
               chain prerouting {{\n    \
                 type filter hook prerouting priority {PRIORITY}; policy accept;\n\
             {rules}  }}\n\
             }}\n"
        )
    }

    fn family(&self, v4: bool) -> Vec<String> {
        self.vips.iter().filter(|vip| vip.is_ipv4() == v4).map(IpAddr::to_string).collect()
    }
}

/// Removes the table of a TAP; a table that is not there is no error.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn remove(tap: &str) -> Result<(), FirewallError> {
    let table = table_name(tap);
    run_nft(&format!("table inet {table} {{}}\ndelete table inet {table}\n"))
}

/// Whether the table of a TAP is there. Somebody who loads a ruleset of theirs takes it away
/// without a word (`flush ruleset`).
///
/// # Errors
/// When `nft` is missing or does not tell.
pub fn is_present(tap: &str) -> Result<bool, FirewallError> {
    let tables = Command::new("nft").args(["list", "tables", "inet"]).output();
    let output = tables.map_err(FirewallError::Start)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(FirewallError::Refused(said));
    }
    let line = format!("table inet {}", table_name(tap));
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|found| found.trim() == line))
}

/// Name of the table of a TAP, in the `inet` family.
pub(crate) fn table_name(tap: &str) -> String {
    let tap: String =
        tap.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("adit_{tap}")
}

fn run_nft(script: &str) -> Result<(), FirewallError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(FirewallError::Start)?;
    let written = match nft.stdin.take() {
        // nft may refuse at the first line and close its end; its own words say more.
        Some(mut stdin) => stdin.write_all(script.as_bytes()),
        None => Ok(()),
    };
    let output = nft.wait_with_output().map_err(FirewallError::Start)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // The first line makes the table, and needs nothing but the family.
        let first = said.lines().next().unwrap_or_default();
        if first.starts_with("/dev/stdin:1:") && first.contains("Operation not supported") {
            return Err(FirewallError::NoTables);
        }
        return Err(FirewallError::Refused(said));
    }
    written.map_err(FirewallError::Start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing;

    fn rules() -> Rules {
        let vips = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
        Rules {
            tap: "adit-0".into(),
            interface: "eth0".into(),
            vips: vips.iter().map(|v| v.parse().unwrap()).collect(),
        }
    }

    fn listed() -> String {
        testing::run("nft list ruleset")
    }

    #[test]
    fn the_script_says_what_it_should() {
        insta::assert_snapshot!(rules().script());
    }

    #[test]
    fn applied_twice_replaced_and_removed() {
        if !testing::own_network() {
            return;
        }
        testing::run("nft add table inet foreign");
        rules().apply().unwrap();
        let once = listed();
        assert!(once.contains("table inet adit_adit_0"), "{once}");
        assert!(once.contains("192.0.2.2"), "{once}");
        assert!(is_present("adit-0").unwrap() && !is_present("adit").unwrap());
        rules().apply().unwrap();
        assert_eq!(listed(), once, "twice is the same as once");

        Rules { vips: vec!["192.0.2.9".parse().unwrap()], ..rules() }.apply().unwrap();
        let replaced = listed();
        assert!(replaced.contains("192.0.2.9") && !replaced.contains("192.0.2.1"), "{replaced}");
        assert!(!replaced.contains("ip6"), "{replaced}");

        Rules { vips: Vec::new(), ..rules() }.apply().unwrap();
        remove("adit-0").unwrap();
        remove("adit-0").unwrap();
        assert!(!listed().contains("adit"), "{}", listed());
        assert!(!is_present("adit-0").unwrap());
        assert!(listed().contains("foreign"), "others' tables are left alone");
    }

    #[test]
    fn refusals_carry_what_nft_said() {
        if !testing::own_network() {
            return;
        }
        let error = Rules { interface: "a\"b".into(), ..rules() }.apply().unwrap_err();
        assert!(matches!(&error, FirewallError::Refused(said) if !said.is_empty()), "{error}");
    }
}
