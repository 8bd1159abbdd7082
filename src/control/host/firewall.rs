//! The chains of other people's firewalls that packets of a director pass.

use crate::control::firewall::{FirewallError, nft};
use serde_json::Value;
use std::io;
use std::process::Command;

/// A hook that a director's packets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// From the client-facing interface to the TAP, and Adit's own answers back.
    Forward,
    /// Outer packets that the kernel routes.
    Output,
}

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookChain {
    /// How an operator names it: `inet filter forward`.
    pub name: String,
    /// nftables family; `ip` or `ip6` for iptables.
    pub family: String,
    /// Where it hangs.
    pub hook: Hook,
    /// Whether packets that no rule takes are dropped: by policy, or by a last rule without
    /// conditions.
    pub drops_rest: bool,
    /// The text of its accept rules, jumps into other chains included.
    pub accepts: Vec<String>,
}

impl HookChain {
    /// Whether it looks as if packets in question are accepted: some accept rule names one of
    /// `words`, or has no condition at all. A guess, since rules can be anything.
    #[must_use]
    pub fn seems_to_accept(&self, words: &[String]) -> bool {
        !self.drops_rest
            || self.accepts.iter().any(|rule| words.iter().any(|word| rule.contains(word)))
    }
}

/// The base chains of nftables (iptables-nft's are among them).
///
/// # Errors
/// When `nft` cannot be run, refuses or stalls.
pub async fn nft_chains() -> io::Result<Vec<HookChain>> {
    let listed = nft(&["-j", "list", "ruleset"], "").await;
    let output = listed.map_err(|error| {
        if let FirewallError::Start(error) = error { error } else { io::Error::other(error) }
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(said));
    }
    parse_nft(&output.stdout).map_err(io::Error::other)
}

/// FORWARD and OUTPUT of the old iptables, where its filter table is in use.
#[must_use]
pub fn legacy_chains() -> Vec<HookChain> {
    let mut found = Vec::new();
    for (names, program, family) in [
        ("/proc/net/ip_tables_names", "iptables-legacy", "ip"),
        ("/proc/net/ip6_tables_names", "ip6tables-legacy", "ip6"),
    ] {
        // Asking the program would load the table, so first see whether it is there.
        let in_use = std::fs::read_to_string(names).is_ok_and(|text| text.contains("filter"));
        if !in_use {
            continue;
        }
        for (chain, hook) in [("FORWARD", Hook::Forward), ("OUTPUT", Hook::Output)] {
            if let Ok(output) = Command::new(program).args(["-S", chain]).output() {
                let rules = String::from_utf8_lossy(&output.stdout);
                found.push(parse_legacy(&rules, program, family, chain, hook));
            }
        }
    }
    found
}

fn parse_legacy(rules: &str, program: &str, family: &str, chain: &str, hook: Hook) -> HookChain {
    let policy = format!("-P {chain} ");
    let ends = [format!("-A {chain} -j DROP"), format!("-A {chain} -j REJECT")];
    HookChain {
        name: format!("{program} {chain}"),
        family: family.to_owned(),
        hook,
        drops_rest: rules.lines().any(|line| {
            line.strip_prefix(&policy).is_some_and(|policy| policy != "ACCEPT")
                || ends.iter().any(|end| line.starts_with(end))
        }),
        accepts: rules
            .lines()
            .filter(|line| line.contains("-j ACCEPT"))
            .map(str::to_owned)
            .collect(),
    }
}

/// What `nft -j list ruleset` prints, as far as it matters here.
fn parse_nft(json: &[u8]) -> Result<Vec<HookChain>, serde_json::Error> {
    let document: Value = serde_json::from_slice(json)?;
    let objects = document["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let place = |value: &Value| {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        (text("family"), text("table"))
    };
    let mut chains = Vec::new();
    for chain in objects.iter().map(|o| &o["chain"]).filter(|c| c["type"] == "filter") {
        let hook = match chain["hook"].as_str() {
            Some("forward") => Hook::Forward,
            Some("output") => Hook::Output,
            _ => continue,
        };
        let (family, table) = place(chain);
        if !matches!(family.as_str(), "inet" | "ip" | "ip6") {
            continue;
        }
        let name = chain["name"].as_str().unwrap_or_default().to_owned();
        let mut seen = vec![name.clone()];
        let rules = |name: &str| -> Vec<&Value> {
            objects
                .iter()
                .map(|o| &o["rule"])
                .filter(|r| place(r) == (family.clone(), table.clone()) && r["chain"] == name)
                .map(|r| &r["expr"])
                .collect()
        };
        let mut drops_rest = chain["policy"] == "drop";
        let mut accepts = Vec::new();
        let mut next = 0;
        // Chains that are jumped to are looked at as well, each once.
        while let Some(current) = seen.get(next).cloned() {
            for rule in rules(&current) {
                let statements = rule.as_array().map(Vec::as_slice).unwrap_or_default();
                let has = |verdict: &str| statements.iter().any(|s| s.get(verdict).is_some());
                let matches = statements.iter().any(|s| s.get("match").is_some());
                if has("accept") {
                    accepts.push(rule.to_string());
                    if !matches && next == 0 {
                        // Accepts everything that comes so far.
                        drops_rest = false;
                    }
                }
                if next == 0 && !matches && (has("drop") || has("reject")) {
                    drops_rest = true;
                }
                let target = |kind: &str| {
                    statements.iter().find_map(|s| s[kind]["target"].as_str().map(str::to_owned))
                };
                if let Some(target) = target("jump").or_else(|| target("goto"))
                    && !seen.contains(&target)
                {
                    seen.push(target);
                }
            }
            next += 1;
        }
        let name = format!("{family} {table} {name}");
        chains.push(HookChain { name, family, hook, drops_rest, accepts });
    }
    Ok(chains)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::runtime;
    use crate::control::testing::{own_network, run};

    #[test]
    fn chains_of_a_real_firewall() {
        if !own_network() {
            return;
        }
        run("nft add table inet filter");
        run(
            "nft add chain inet filter forward { type filter hook forward priority 0 ; policy drop ; }",
        );
        run("nft add chain inet filter ours");
        run("nft add rule inet filter forward ct state established accept");
        run("nft add rule inet filter forward jump ours");
        run("nft add chain inet filter out { type filter hook output priority 0 ; }");
        let chains = runtime::block_on(nft_chains()).unwrap().unwrap();
        assert_eq!(chains.len(), 2, "{chains:?}");
        let forward = chains.iter().find(|c| c.hook == Hook::Forward).unwrap();
        assert_eq!(forward.name, "inet filter forward");
        let words = ["\"adit0\"".to_owned()];
        assert!(!forward.seems_to_accept(&words));
        let output = chains.iter().find(|c| c.hook == Hook::Output).unwrap();
        assert!(output.seems_to_accept(&words), "no policy: accept");

        run("nft add rule inet filter ours oifname adit0 accept");
        let forward = runtime::block_on(nft_chains())
            .unwrap()
            .unwrap()
            .into_iter()
            .find(|c| c.hook == Hook::Forward)
            .unwrap();
        assert!(forward.seems_to_accept(&words), "an accept behind a jump counts");
        run("nft add rule inet filter out drop");
        let output = runtime::block_on(nft_chains())
            .unwrap()
            .unwrap()
            .into_iter()
            .find(|c| c.hook == Hook::Output)
            .unwrap();
        assert!(!output.seems_to_accept(&words), "a last drop is as good as a policy");
    }

    #[test]
    fn legacy_policies_and_last_rules() {
        let look =
            |rules: &str| parse_legacy(rules, "iptables-legacy", "ip", "FORWARD", Hook::Forward);
        assert!(look("-P FORWARD DROP\n").drops_rest);
        assert!(!look("-P FORWARD ACCEPT\n-A FORWARD -s 10.0.0.0/8 -j DROP\n").drops_rest);
        let chain = look("-P FORWARD ACCEPT\n-A FORWARD -o adit0 -j ACCEPT\n-A FORWARD -j DROP\n");
        assert!(chain.drops_rest && chain.seems_to_accept(&["adit0".to_owned()]));
    }
}
