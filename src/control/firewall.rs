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

use crate::dataplane::vip_prefix::VipPrefix;
use std::fmt::Write as _;
use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Before `NF_IP_PRI_CONNTRACK_DEFRAG` (-400): what the kernel calls
/// `NF_IP_PRI_RAW_BEFORE_DEFRAG`.
const PRIORITY: i32 = -450;

/// How long `nft` may take: it waits for others that change rules, and large rulesets take seconds.
pub const NFT_ENDS: Duration = Duration::from_secs(20);

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
    /// `nft` did not come to an end, and was ended.
    #[error("nft has not ended within {} s, and was stopped: does another program hold the ruleset?", NFT_ENDS.as_secs())]
    Stalled,
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
    /// Every VIP, and every prefix of them.
    pub vips: Vec<VipPrefix>,
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
    /// When `nft` is missing, refuses or stalls.
    pub async fn apply(&self) -> Result<(), FirewallError> {
        load(&self.script()).await
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
        // A set has no place for what one of its prefixes holds already.
        let held =
            |vip: &&VipPrefix| self.vips.iter().any(|other| other != *vip && other.covers(vip));
        let vips = self.vips.iter().filter(|vip| vip.is_ipv4() == v4 && !held(vip));
        vips.map(VipPrefix::to_string).collect()
    }
}

/// Removes the table of a TAP; a table that is not there is no error.
///
/// # Errors
/// When `nft` is missing, refuses or stalls.
pub async fn remove(tap: &str) -> Result<(), FirewallError> {
    let table = table_name(tap);
    load(&format!("table inet {table} {{}}\ndelete table inet {table}\n")).await
}

/// The table of a TAP as `nft` lists it; `None` where there is none. Somebody who loads a ruleset of
/// theirs takes it away without a word (`flush ruleset`), or puts back what it was at another time.
///
/// # Errors
/// When `nft` is missing, does not tell or stalls.
pub async fn listing(tap: &str) -> Result<Option<String>, FirewallError> {
    let output = nft(&["list", "table", "inet", &table_name(tap)], "").await?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.contains("No such file or directory") {
        return Ok(None);
    }
    Err(FirewallError::Refused(said))
}

/// Name of the table of a TAP, in the `inet` family.
pub(crate) fn table_name(tap: &str) -> String {
    let tap: String =
        tap.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("adit_{tap}")
}

async fn load(script: &str) -> Result<(), FirewallError> {
    let output = nft(&["-f", "-"], script).await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // The first line makes the table, and needs nothing but the family.
    let first = said.lines().next().unwrap_or_default();
    if first.starts_with("/dev/stdin:1:") && first.contains("Operation not supported") {
        return Err(FirewallError::NoTables);
    }
    Err(FirewallError::Refused(said))
}

/// Runs `nft` to its end, which comes in time or is brought about.
///
/// # Errors
/// When it is missing or stalls.
pub(super) async fn nft(words: &[&str], input: &str) -> Result<Output, FirewallError> {
    let mut nft = Command::new("nft")
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(FirewallError::Start)?;
    let stdin = nft.stdin.take();
    let work = async {
        let written = match stdin {
            Some(mut stdin) => stdin.write_all(input.as_bytes()).await,
            None => Ok(()),
        };
        let output = nft.wait_with_output().await?;
        // nft may refuse at the first line and close its end; its own words say more.
        if output.status.success() {
            written?;
        }
        Ok(output)
    };
    let ended = tokio::time::timeout(NFT_ENDS, work).await;
    ended.map_err(|_| FirewallError::Stalled)?.map_err(FirewallError::Start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{runtime, testing};

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
    fn prefixes_are_one_element_each_and_swallow_what_lies_within() {
        let vips = ["198.51.100.16/28", "198.51.100.20", "198.51.100.24/29", "192.0.2.1"];
        let vips = vips.iter().map(|vip| vip.parse().unwrap()).collect();
        let rules = Rules { vips, ..rules() };
        let script = rules.script();
        assert!(script.contains("daddr { 198.51.100.16/28, 192.0.2.1 } notrack"), "{script}");
        if testing::own_network() {
            runtime::block_on(rules.apply()).unwrap().unwrap();
            assert!(listed().contains("198.51.100.16/28"), "{}", listed());
        }
    }

    #[test]
    fn applied_twice_replaced_and_removed() {
        if !testing::own_network() {
            return;
        }
        let test = async {
            testing::run("nft add table inet foreign");
            rules().apply().await.unwrap();
            let once = listed();
            assert!(once.contains("table inet adit_adit_0"), "{once}");
            assert!(once.contains("192.0.2.2"), "{once}");
            let table = listing("adit-0").await.unwrap().unwrap();
            assert!(once.contains(&table), "{table}");
            assert_eq!(listing("adit").await.unwrap(), None);
            rules().apply().await.unwrap();
            assert_eq!(listed(), once, "twice is the same as once");

            let other = Rules { vips: vec!["192.0.2.9".parse().unwrap()], ..rules() };
            other.apply().await.unwrap();
            let replaced = listed();
            assert!(
                replaced.contains("192.0.2.9") && !replaced.contains("192.0.2.1"),
                "{replaced}"
            );
            assert!(!replaced.contains("ip6"), "{replaced}");

            Rules { vips: Vec::new(), ..rules() }.apply().await.unwrap();
            remove("adit-0").await.unwrap();
            remove("adit-0").await.unwrap();
            assert!(!listed().contains("adit"), "{}", listed());
            assert_eq!(listing("adit-0").await.unwrap(), None);
            assert!(listed().contains("foreign"), "others' tables are left alone");
        };
        runtime::block_on(test).unwrap();
    }

    #[test]
    fn refusals_carry_what_nft_said() {
        if !testing::own_network() {
            return;
        }
        let rules = Rules { interface: "a\"b".into(), ..rules() };
        let error = runtime::block_on(rules.apply()).unwrap().unwrap_err();
        assert!(matches!(&error, FirewallError::Refused(said) if !said.is_empty()), "{error}");
    }
}
