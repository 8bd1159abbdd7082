//! Rules in other people's firewalls that let a director's packets pass: added, and taken away again.

use crate::control::firewall::{FirewallError, nft};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::io;
use std::process::Command;

/// The comment of each rule that is added here, by which it is found again.
const MARK: &str = "added-by-adit";

/// Why a firewall was not changed.
#[derive(Debug, thiserror::Error)]
pub enum AcceptsError {
    /// `nft` could not be run, or refused.
    #[error(transparent)]
    Nft(#[from] FirewallError),
    /// `nft` refused with its own words, or printed something else than its rules.
    #[error("nft: {0}")]
    Refused(String),
    /// One of the old iptables could not be run, or refused.
    #[error("{program}: {reason}")]
    Legacy {
        /// Which of the two.
        program: &'static str,
        /// Why.
        reason: String,
    },
}

/// One change of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The command that does the same by hand.
    pub text: String,
}

/// What adding `rules`, as [`missing_accepts`](super::missing_accepts) gives them, comes to.
#[must_use]
pub fn additions(rules: &[String]) -> Vec<Change> {
    let marked = |rule: &String| Change {
        text: if rule.starts_with("nft ") {
            format!("{rule} comment \"{MARK}\"")
        } else {
            format!("{rule} -m comment --comment {MARK}")
        },
    };
    rules.iter().map(marked).collect()
}

/// The rules that were added and are still there, each as the command that takes it away.
///
/// # Errors
/// When the rules cannot be listed. Where a program is not installed, it has none.
pub async fn removals() -> Result<Vec<Change>, AcceptsError> {
    let mut changes = match nft(&["-a", "-j", "list", "ruleset"], "").await {
        Ok(output) if output.status.success() => marked_rules(&output.stdout)?,
        Ok(output) => return Err(refusal(&output.stderr)),
        Err(FirewallError::Start(error)) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(other) => return Err(other.into()),
    };
    for (names, program) in
        [("/proc/net/ip_tables_names", LEGACY[0]), ("/proc/net/ip6_tables_names", LEGACY[1])]
    {
        // Asking the program would load the table, so first see whether it is there.
        if !std::fs::read_to_string(names).is_ok_and(|text| text.contains("filter")) {
            continue;
        }
        let listed = legacy(program, &["-S"])?;
        changes.extend(marked_legacy(&listed, program));
    }
    Ok(changes)
}

/// The old iptables, whose rules nft does not see.
const LEGACY: [&str; 2] = ["iptables-legacy", "ip6tables-legacy"];

/// Carries out changes: those of nft in one transaction, so that none is there by half, and then the
/// others.
///
/// # Errors
/// The first that is refused.
pub async fn carry_out(changes: &[Change]) -> Result<(), AcceptsError> {
    let mut script = String::new();
    for rule in changes.iter().filter_map(|change| change.text.strip_prefix("nft ")) {
        // Writing to a String cannot fail.
        let _ = writeln!(script, "{rule}");
    }
    if !script.is_empty() {
        let output = nft(&["-f", "-"], &script).await?;
        if !output.status.success() {
            return Err(refusal(&output.stderr));
        }
    }
    for change in changes {
        let mut words = change.text.split_whitespace();
        let first = words.next();
        if let Some(program) = LEGACY.into_iter().find(|program| first == Some(program)) {
            legacy(program, &words.collect::<Vec<_>>())?;
        }
    }
    Ok(())
}

fn refusal(said: &[u8]) -> AcceptsError {
    AcceptsError::Refused(String::from_utf8_lossy(said).trim().to_owned())
}

fn legacy(program: &'static str, words: &[&str]) -> Result<String, AcceptsError> {
    let refused = |reason: String| AcceptsError::Legacy { program, reason };
    let output =
        Command::new(program).args(words).output().map_err(|error| refused(error.to_string()))?;
    if !output.status.success() {
        return Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What `nft -a -j list ruleset` shows with our comment.
fn marked_rules(json: &[u8]) -> Result<Vec<Change>, AcceptsError> {
    let document: Value =
        serde_json::from_slice(json).map_err(|error| AcceptsError::Refused(error.to_string()))?;
    let objects = document["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rules = objects.iter().map(|object| &object["rule"]);
    let ours = rules.filter(|rule| rule["comment"] == MARK);
    let change = |rule: &Value| {
        let word = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
        let place = ["family", "table", "chain"].map(word).join(" ");
        Change { text: format!("nft delete rule {place} handle {}", rule["handle"]) }
    };
    Ok(ours.map(change).collect())
}

/// What `iptables -S` shows with our comment.
fn marked_legacy(rules: &str, program: &str) -> Vec<Change> {
    let mark = format!(" --comment {MARK} ");
    let ours = rules.lines().filter(|rule| rule.contains(&mark));
    let deleted = ours.filter_map(|rule| rule.strip_prefix("-A "));
    deleted.map(|rule| Change { text: format!("{program} -D {rule}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::host::firewall::nft_chains;
    use crate::control::runtime;
    use crate::control::testing::{own_network, run};

    fn added(rules: &[&str]) -> Vec<Change> {
        additions(&rules.iter().map(|&rule| rule.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_added_to_a_real_firewall_is_taken_away_again() {
        if !own_network() {
            return;
        }
        run("nft add table inet filter");
        run(
            "nft add chain inet filter forward { type filter hook forward priority 0; policy drop; }",
        );
        run("nft add rule inet filter forward iifname eth9 accept comment \"somebody's\"");
        let listing = || {
            let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let found = listing();
        let words = ["\"adit0\"".to_owned()];
        let accepted = || {
            let chains = runtime::block_on_plain(nft_chains()).unwrap().unwrap();
            chains[0].seems_to_accept(&words)
        };
        assert!(!accepted());

        let insert = "nft insert rule inet filter forward";
        let to = format!("{insert} iifname \"eth0\" oifname \"adit0\" accept");
        let from = format!("{insert} iifname \"adit0\" oifname \"eth0\" accept");
        runtime::block_on_plain(carry_out(&added(&[&to, &from]))).unwrap().unwrap();
        assert!(accepted(), "{}", listing());

        // All or nothing: the second of these names a chain that is not there.
        let opened = listing();
        let nowhere = "nft insert rule inet filter nowhere accept";
        let refused = runtime::block_on_plain(carry_out(&added(&[&to, nowhere]))).unwrap();
        assert!(matches!(refused, Err(AcceptsError::Refused(_))), "{refused:?}");
        assert_eq!(listing(), opened);

        let removals_now = || runtime::block_on_plain(removals()).unwrap().unwrap();
        let ours = removals_now();
        assert_eq!(ours.len(), 2, "{ours:?}");
        runtime::block_on_plain(carry_out(&ours)).unwrap().unwrap();
        assert_eq!(listing(), found);
        assert_eq!(removals_now(), []);
    }

    #[test]
    fn rules_of_the_old_iptables_are_marked_and_found() {
        let change = added(&["iptables-legacy -I FORWARD -i eth0 -o adit0 -j ACCEPT"]);
        let text = "iptables-legacy -I FORWARD -i eth0 -o adit0 -j ACCEPT -m comment --comment \
                    added-by-adit";
        assert_eq!(change, [Change { text: text.to_owned() }]);
        let listed = "-P FORWARD DROP\n\
             -A FORWARD -i eth0 -o adit0 -m comment --comment added-by-adit -j ACCEPT\n\
             -A FORWARD -i eth0 -m comment --comment added-by-adit-s-friend -j ACCEPT\n";
        let text = "iptables-legacy -D FORWARD -i eth0 -o adit0 -m comment --comment \
                    added-by-adit -j ACCEPT";
        assert_eq!(marked_legacy(listed, "iptables-legacy"), [Change { text: text.to_owned() }]);
    }
}
