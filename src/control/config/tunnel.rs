//! How packets to a real server are carried, and what says so: `[tunnel]`, `tunnel` of a service and
//! `tunnel` of a real server, the last before the first.

use super::reader::{Problems, Table, Word};
use adit_tunnel::{Encapsulation, GUE_PORT};
use serde::Serialize;
use std::fmt;
use std::net::IpAddr;
use toml::Spanned;
use toml::de::DeValue;

/// How packets to one real server are carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum RealTunnel {
    /// IP directly in IP (RFC 2003, RFC 2473).
    #[default]
    Ipip,
    /// Behind a GRE header (RFC 2784).
    Gre {
        /// Whether that has a checksum.
        checksum: bool,
    },
    /// Behind UDP and a GUE header.
    Gue {
        /// UDP port of the real server.
        port: u16,
        /// Whether UDP's checksum is filled in.
        checksum: bool,
    },
    /// Unwrapped, in a frame to the real server on a segment of this host (LVS-DR).
    Direct,
}

impl RealTunnel {
    /// How packets are wrapped; `None` where they are not.
    #[must_use]
    pub fn encapsulation(self) -> Option<Encapsulation> {
        Some(match self {
            RealTunnel::Ipip => Encapsulation::Ipip,
            RealTunnel::Gre { checksum } => Encapsulation::Gre { checksum },
            RealTunnel::Gue { port, checksum } => Encapsulation::Gue { port, checksum },
            RealTunnel::Direct => return None,
        })
    }

    /// Whether it is what there was before there were others: a configuration that names no other
    /// keeps the hash it has had.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
    pub(super) fn is_ipip(&self) -> bool {
        *self == RealTunnel::Ipip
    }
}

impl fmt::Display for RealTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |checksum| if checksum { " with checksum" } else { "" };
        match *self {
            RealTunnel::Ipip => f.write_str("ipip"),
            RealTunnel::Gre { checksum } => write!(f, "gre{}", sum(checksum)),
            RealTunnel::Gue { port, checksum } => write!(f, "gue port {port}{}", sum(checksum)),
            RealTunnel::Direct => f.write_str("direct"),
        }
    }
}

/// A kind of tunnel, by its name in the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// [`RealTunnel::Ipip`].
    #[default]
    Ipip,
    /// [`RealTunnel::Gre`].
    Gre,
    /// [`RealTunnel::Gue`].
    Gue,
    /// [`RealTunnel::Direct`].
    Direct,
}

const KINDS: [Word<TunnelKind>; 4] = [
    Word::Is("ipip", TunnelKind::Ipip),
    Word::Is("gre", TunnelKind::Gre),
    Word::Is("gue", TunnelKind::Gue),
    Word::Is("direct", TunnelKind::Direct),
];

/// What one level of the configuration says of tunnels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TunnelChoice {
    pub(super) kind: TunnelKind,
    port: Option<u16>,
    checksum: Option<bool>,
}

impl TunnelChoice {
    /// Reads `kind`, `port` and `checksum` of a table. Without `kind` it is IP in IP, if `needed`
    /// does not ask for one.
    pub(super) fn read(t: &mut Table<'_>, problems: &Problems, needed: bool) -> Self {
        let given = t.get("kind").is_some();
        let kind = t.word("kind", &KINDS);
        if needed && !given {
            t.missing("kind", "kind = \"gue\"");
        }
        let misnamed = given && kind.is_none() || needed && !given;
        let kind = kind.unwrap_or_default();
        let spans = ["port", "checksum"].map(|key| t.get(key).map(Spanned::span));
        let port =
            t.integer("port", &(1..=u16::MAX), "the UDP port that the real server listens on");
        let checksum = t.boolean("checksum").map(|key| key.value);
        // Of a kind that nobody knows nothing more can be said.
        if !misnamed {
            let [port_span, checksum_span] = spans;
            if let (TunnelKind::Ipip | TunnelKind::Gre | TunnelKind::Direct, Some(span)) =
                (kind, port_span)
            {
                problems.at(span, "`port` belongs to GUE", "write kind = \"gue\", or leave it out");
            }
            if let (TunnelKind::Ipip | TunnelKind::Direct, Some(span)) = (kind, checksum_span) {
                problems.at(
                    span,
                    "`checksum` belongs to GRE and GUE",
                    "write kind = \"gre\" or \"gue\", or leave it out",
                );
            }
        }
        TunnelChoice { kind, port, checksum }
    }

    /// Reads `tunnel` of a service or a real server, a word or a table. What it does not name of a
    /// kind is as `above`, where that is of the same kind.
    pub(super) fn below(t: &mut Table<'_>, problems: &Problems, above: Self) -> Self {
        let Some(value) = t.get("tunnel") else { return above };
        let choice = if let DeValue::Table(_) = value.get_ref() {
            let Some(mut table) = t.table("tunnel", "`tunnel`") else { return above };
            let choice = Self::read(&mut table, problems, true);
            table.finish();
            choice
        } else {
            let Some(kind) = t.word("tunnel", &KINDS) else { return above };
            TunnelChoice { kind, ..Self::default() }
        };
        if choice.kind != above.kind {
            return choice;
        }
        TunnelChoice {
            kind: choice.kind,
            port: choice.port.or(above.port),
            checksum: choice.checksum.or(above.checksum),
        }
    }

    /// What it means for a real server. Over IPv6 a UDP checksum of 0 is dropped by a receiver that
    /// was not told otherwise (RFC 8200 §8.1), so it is filled in unless the file says no.
    pub(super) fn towards(self, real: IpAddr) -> RealTunnel {
        match self.kind {
            TunnelKind::Ipip => RealTunnel::Ipip,
            TunnelKind::Gre => RealTunnel::Gre { checksum: self.checksum.unwrap_or(false) },
            TunnelKind::Gue => RealTunnel::Gue {
                port: self.port.unwrap_or(GUE_PORT),
                checksum: self.checksum.unwrap_or(real.is_ipv6()),
            },
            TunnelKind::Direct => RealTunnel::Direct,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::control::config::{config_hash, parse};

    fn config(tunnel: &str, service: &str, real: &str) -> String {
        format!(
            "[director]\ninterface = \"eth0\"\n[tunnel]\n{tunnel}\n\
             [[service]]\nname = \"db\"\nvip = \"192.0.2.1\"\nport = 5432\n{service}\n\
             [[service.real]]\naddress = \"10.0.0.1\"\n{real}\n\
             [[service.real]]\naddress = \"2001:db8::1\"\n"
        )
    }

    fn tunnels(tunnel: &str, service: &str, real: &str) -> [String; 2] {
        let config = parse(&config(tunnel, service, real), "t").unwrap();
        let reals = &config.services[0].reals;
        [reals[0].tunnel.to_string(), reals[1].tunnel.to_string()]
    }

    #[test]
    fn a_real_server_goes_before_its_service_and_that_before_the_section() {
        let gue = "tunnel = { kind = \"gue\", port = 7000 }";
        let cases = [
            ("", "", "", ["ipip", "ipip"]),
            ("kind = \"gre\"", "", "", ["gre", "gre"]),
            ("kind = \"gre\"\nchecksum = true", "tunnel = \"gre\"", "", ["gre with checksum"; 2]),
            ("", "tunnel = \"gue\"", "", ["gue port 6080", "gue port 6080 with checksum"]),
            ("", gue, "", ["gue port 7000", "gue port 7000 with checksum"]),
            (
                "kind = \"gue\"\nport = 7000\nchecksum = false",
                "tunnel = { kind = \"gue\", checksum = true }",
                "tunnel = \"direct\"",
                ["direct", "gue port 7000 with checksum"],
            ),
            // What another kind has does not hold for this one.
            (
                "kind = \"gre\"\nchecksum = true",
                "tunnel = \"gue\"",
                "tunnel = \"gre\"",
                ["gre", "gue port 6080 with checksum"],
            ),
            (
                "kind = \"gue\"\nchecksum = false",
                "",
                "tunnel = \"ipip\"",
                ["ipip", "gue port 6080"],
            ),
        ];
        for (tunnel, service, real, expected) in cases {
            assert_eq!(tunnels(tunnel, service, real), expected, "{tunnel} / {service} / {real}");
        }
    }

    #[test]
    fn what_does_not_fit_a_kind_is_refused() {
        let cases = [
            ("port = 6080", "", "`port` belongs to GUE"),
            ("kind = \"gre\"\nport = 6080", "", "`port` belongs to GUE"),
            ("kind = \"direct\"\nchecksum = true", "", "`checksum` belongs to GRE and GUE"),
            ("", "tunnel = \"vxlan\"", "`tunnel` cannot be \"vxlan\""),
            ("", "tunnel = { port = 7 }", "`tunnel` has no `kind`"),
            ("", "tunnel = { kind = \"gue\", port = 0 }", "`port` = 0 is out of range"),
            ("", "tunnel = { kind = \"gue\", key = 1 }", "unknown key `key` in `tunnel`"),
        ];
        for (tunnel, service, message) in cases {
            let errors = parse(&config(tunnel, service, ""), "t").unwrap_err();
            let problems = errors.problems();
            assert_eq!(problems.len(), 1, "{tunnel} / {service}: {problems:?}");
            assert!(problems[0].message.contains(message), "{problems:?} is not {message}");
        }
    }

    /// Directors of two versions, and a director before and after an update, compare hashes.
    #[test]
    fn configurations_without_other_tunnels_and_pools_keep_their_hash() {
        let hash =
            |tunnel: &str| config_hash(&parse(&config(tunnel, "", ""), "t").unwrap()).to_string();
        assert_eq!(hash(""), HASHES[0]);
        assert_eq!(hash("source = [\"10.0.0.5\", \"2001:db8::5\"]"), HASHES[1]);
        assert_ne!(hash("kind = \"gre\""), HASHES[0]);
        assert_ne!(hash("source = [\"10.0.0.5\", \"10.0.0.6\", \"2001:db8::5\"]"), HASHES[1]);
    }

    /// As the version without them computed them.
    const HASHES: [&str; 2] = ["0e40ff4d4d9bd9b2", "793bbf6bb64257db"];
}
