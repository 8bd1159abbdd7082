//! What must be done, in which order: pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// The decapsulating device for IPv6 outer headers, which `apply` makes.
///
/// It is a device of our own since the module's `ip6tnl0` only unwraps IPv6 in IPv6, and its mode
/// cannot be changed (`ip6_tnl_changelink` in net/ipv6/ip6_tunnel.c refuses the fallback device).
pub const TUNNEL6: &str = "adit-ip6";

/// All devices that unwrap packets for VIPs.
pub const DEVICES: [&str; 3] = ["tunl0", "sit0", TUNNEL6];

/// Number of the routing table and priority of the rules that carry the segment size.
pub const MSS_TABLE: u32 = 7705;

/// The nftables table of those limits, of family `inet`.
const NFT_TABLE: &str = "adit_realserver";

/// Outer header sizes: RFC 2003 (an IPv4 header) and RFC 2473 (an IPv6 header).
const OUTER_V4: u16 = 20;
const OUTER_V6: u16 = 40;

/// What a real server must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Addresses whose traffic the host serves.
    pub vips: Vec<IpAddr>,
    /// Version of the outer header that directors use for all VIPs of the list.
    pub outer: Outer,
    /// Limit for the TCP segments that clients send.
    pub mss: Mss,
}

/// IP version of the outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// IPv4: `tunl0` unwraps IPv4, `sit0` unwraps IPv6.
    V4,
    /// IPv6, to this address of the host.
    V6(Ipv6Addr),
}

/// Limit for the segments that clients send; the host announces it in its SYN-ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mss {
    /// The host's own: clients learn the path's MTU by ICMP.
    Unclamped,
    /// What fits the given path MTU, in bytes, with the outer header.
    ForPathMtu(u16),
}

/// How the segment size can be limited on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MssMethod {
    /// An nftables rule on SYN-ACKs from the VIP.
    Nftables,
    /// A route of its own for replies from the VIP, with `advmss`: where nftables lacks the
    /// `inet` family. The parts are the default route's, per IP version.
    Route {
        /// IPv4 default route, as in `via 10.0.0.1 dev eth0`.
        v4: Option<String>,
        /// IPv6 default route.
        v6: Option<String>,
    },
}

/// One change of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Load a kernel module, or find it built in.
    Module(String),
    /// Set a kernel parameter.
    Sysctl {
        /// Name with dots.
        name: String,
        /// Value to write.
        value: String,
    },
    /// Give a kernel parameter back the value that it had before `apply`.
    RestoreSysctl(String),
    /// Run `ip` with these words.
    Ip(String),
    /// Run `ip` with these words, and be content when there is nothing to remove.
    IpIfPresent(String),
    /// Load this nftables ruleset.
    Nft(String),
    /// Remove this nftables table or chain, and be content when it is not there.
    NftDelete(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Module(name) => write!(f, "modprobe {name}"),
            Self::Sysctl { name, value } => write!(f, "sysctl {name}={value}"),
            Self::RestoreSysctl(name) => write!(f, "sysctl {name}=<as before>"),
            Self::Ip(words) | Self::IpIfPresent(words) => write!(f, "ip {words}"),
            Self::Nft(ruleset) => write!(f, "nft {ruleset}"),
            Self::NftDelete(what) => write!(f, "nft delete {what}"),
        }
    }
}

/// Why there is no plan.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing to serve.
    #[error("no VIP is given")]
    NoVip,
    /// The tunnel device has another local address, and VIPs on it.
    #[error(
        "{TUNNEL6} unwraps what is sent to {local}, and would lose its VIPs: remove them first \
         (adit-realserver remove), or keep that address (--local {local})"
    )]
    OtherTunnel {
        /// What it unwraps.
        local: Ipv6Addr,
    },
    /// The segment size cannot be announced by a route that does not exist.
    #[error("{vip}: no nftables `inet` family and no default route to announce a segment size by")]
    NoRoute {
        /// The VIP whose replies have no default route.
        vip: IpAddr,
    },
    /// The path is smaller than any IP host must take.
    #[error("a path MTU of {mtu} bytes leaves no room for a segment behind the outer header")]
    PathTooSmall {
        /// The given path MTU in bytes.
        mtu: u16,
    },
}

/// The device that unwraps packets to `vip`.
#[must_use]
pub fn device(vip: IpAddr, outer: Outer) -> &'static str {
    match (outer, vip) {
        (Outer::V4, IpAddr::V4(_)) => "tunl0",
        (Outer::V4, IpAddr::V6(_)) => "sit0",
        (Outer::V6(_), _) => TUNNEL6,
    }
}

/// Kernel parameters that keep the host silent about the VIP, and take the filter off the way.
///
/// All are of `all`: the filter's effective value is the maximum of `all` and the device's
/// (`IN_DEV_MAXCONF` in include/linux/inetdevice.h), and so are the ARP values.
const SYSCTLS: [(&str, &str); 3] = [
    ("net.ipv4.conf.all.arp_ignore", "1"),
    ("net.ipv4.conf.all.arp_announce", "2"),
    ("net.ipv4.conf.all.rp_filter", "0"),
];

/// Steps that make the host a real server. The ARP values come before the VIP: the other
/// order answers for the VIP in between. All steps may be repeated. `tunnel6` is the local address
/// of [`TUNNEL6`] where the host has that device.
///
/// # Errors
/// See [`PlanError`].
pub fn apply(
    desired: &Desired,
    method: &MssMethod,
    tunnel6: Option<Ipv6Addr>,
) -> Result<Vec<Step>, PlanError> {
    if desired.vips.is_empty() {
        return Err(PlanError::NoVip);
    }
    let mut steps = Vec::new();
    let mut devices: Vec<&str> = Vec::new();
    for &vip in &desired.vips {
        let device = device(vip, desired.outer);
        if devices.contains(&device) {
            continue;
        }
        devices.push(device);
        let module = match device {
            "tunl0" => "ipip",
            "sit0" => "sit",
            _ => "ip6_tunnel",
        };
        steps.push(Step::Module(module.to_owned()));
    }
    for (name, value) in SYSCTLS {
        steps.push(Step::Sysctl { name: name.to_owned(), value: value.to_owned() });
    }
    if let (Outer::V6(local), Some(other)) = (desired.outer, tunnel6)
        && local != other
    {
        return Err(PlanError::OtherTunnel { local: other });
    }
    for &device in &devices {
        if let Outer::V6(local) = desired.outer
            && tunnel6.is_none()
        {
            // One of that name that does not unwrap both versions is of no use.
            steps.push(Step::IpIfPresent(format!("link del {device}")));
            steps.push(Step::Ip(format!(
                "link add {device} type ip6tnl mode any local {local} remote :: encaplimit none"
            )));
        }
        let name = format!("net.ipv4.conf.{device}.rp_filter");
        steps.push(Step::Sysctl { name, value: "0".to_owned() });
        steps.push(Step::Ip(format!("link set {device} up")));
    }
    steps.extend(clamp(desired, method)?);
    for &vip in &desired.vips {
        let device = device(vip, desired.outer);
        steps.push(Step::Ip(match vip {
            IpAddr::V4(vip) => format!("addr replace {vip}/32 dev {device}"),
            IpAddr::V6(vip) => format!("addr replace {vip}/128 dev {device} nodad"),
        }));
    }
    Ok(steps)
}

/// Steps that take the VIPs away again: VIPs first, the ARP values last. While the host serves
/// `others`, devices and ARP values stay, else it would answer ARP for those.
#[must_use]
pub fn remove(vips: &[IpAddr], outer: Outer, others: &[IpAddr]) -> Vec<Step> {
    let mut steps = Vec::new();
    for &vip in vips {
        let (device, bits) = (device(vip, outer), if vip.is_ipv4() { 32 } else { 128 });
        steps.push(Step::IpIfPresent(format!("addr del {vip}/{bits} dev {device}")));
        steps.extend(unclamp(vip));
    }
    if !others.is_empty() {
        return steps;
    }
    for version in ["-4", "-6"] {
        steps.push(Step::IpIfPresent(format!("{version} route flush table {MSS_TABLE}")));
    }
    steps.push(Step::NftDelete(format!("table inet {NFT_TABLE}")));
    let mut devices: Vec<_> = vips.iter().map(|&vip| device(vip, outer)).collect();
    devices.sort_unstable();
    devices.dedup();
    for device in devices {
        steps.push(Step::IpIfPresent(match outer {
            Outer::V4 => format!("link set {device} down"),
            Outer::V6(_) => format!("link del {device}"),
        }));
    }
    for (name, _) in SYSCTLS.iter().rev() {
        steps.push(Step::RestoreSysctl((*name).to_owned()));
    }
    steps
}

/// The largest segment that fits `path_mtu` behind both headers and TCP's own 20 bytes.
fn segment_size(vip: IpAddr, outer: Outer, path_mtu: u16) -> Result<u16, PlanError> {
    let outer = match outer {
        Outer::V4 => OUTER_V4,
        Outer::V6(_) => OUTER_V6,
    };
    let inner = if vip.is_ipv4() { 40 } else { 60 };
    // 536: what every IPv4 host takes (RFC 9293 §3.7.1); below, something else is wrong.
    path_mtu
        .checked_sub(outer + inner)
        .filter(|&size| size >= 536)
        .ok_or(PlanError::PathTooSmall { mtu: path_mtu })
}

/// The chain that limits the segments of one VIP, with its table.
fn nft_chain(vip: IpAddr) -> String {
    let vip = vip.to_string().replace(['.', ':'], "_");
    format!("inet {NFT_TABLE} vip_{vip}")
}

/// Steps that take the limit of a VIP's segments away, whichever way it was set.
fn unclamp(vip: IpAddr) -> [Step; 2] {
    let version = if vip.is_ipv4() { "-4" } else { "-6" };
    [
        Step::IpIfPresent(format!("{version} rule del from {vip} lookup {MSS_TABLE}")),
        Step::NftDelete(format!("chain {}", nft_chain(vip))),
    ]
}

fn clamp(desired: &Desired, method: &MssMethod) -> Result<Vec<Step>, PlanError> {
    let Mss::ForPathMtu(path_mtu) = desired.mss else {
        // An earlier run may have limited them.
        return Ok(desired.vips.iter().flat_map(|&vip| unclamp(vip)).collect());
    };
    match method {
        MssMethod::Nftables => {
            // A chain for each VIP, so that those of other runs stay.
            let mut ruleset = format!("add table inet {NFT_TABLE}");
            for &vip in &desired.vips {
                let size = segment_size(vip, desired.outer, path_mtu)?;
                let version = if vip.is_ipv4() { "ip" } else { "ip6" };
                let chain = nft_chain(vip);
                ruleset.push_str(&format!(
                    "; add chain {chain} {{ type filter hook output priority mangle; }}; \
                     flush chain {chain}; \
                     add rule {chain} {version} saddr {vip} tcp flags & (syn|ack) == (syn|ack) \
                     tcp option maxseg size > {size} tcp option maxseg size set {size}"
                ));
            }
            Ok(vec![Step::Nft(ruleset)])
        }
        MssMethod::Route { v4, v6 } => {
            let mut steps = Vec::new();
            for &vip in &desired.vips {
                let size = segment_size(vip, desired.outer, path_mtu)?;
                let (version, route) = if vip.is_ipv4() { ("-4", v4) } else { ("-6", v6) };
                let route = route.as_ref().ok_or(PlanError::NoRoute { vip })?;
                let rule = format!("from {vip} lookup {MSS_TABLE}");
                steps.extend([
                    Step::Ip(format!(
                        "{version} route replace default {route} advmss {size} table {MSS_TABLE}"
                    )),
                    Step::IpIfPresent(format!("{version} rule del {rule}")),
                    Step::Ip(format!("{version} rule add {rule} priority {MSS_TABLE}")),
                ]);
            }
            Ok(steps)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 10));

    fn desired(outer: Outer, mss: Mss) -> Desired {
        Desired { vips: vec![VIP, "2001:db8:100::10".parse().unwrap()], outer, mss }
    }

    fn text(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn arp_is_silenced_before_the_vip_comes_and_after_it_goes() {
        let wanted = desired(Outer::V4, Mss::Unclamped);
        let steps = text(&apply(&wanted, &MssMethod::Nftables, None).unwrap());
        let at = |steps: &[String], word: &str| {
            steps.iter().position(|step| step.contains(word)).unwrap_or_else(|| panic!("{word}"))
        };
        assert!(at(&steps, "modprobe ipip") < at(&steps, "tunl0.rp_filter"));
        for silence in ["arp_ignore=1", "arp_announce=2", "all.rp_filter=0"] {
            assert!(at(&steps, silence) < at(&steps, "addr replace 198.51.100.10/32 dev tunl0"));
        }
        let steps = text(&remove(&wanted.vips, wanted.outer, &[]));
        assert!(at(&steps, "addr del 198.51.100.10/32 dev tunl0") < at(&steps, "arp_ignore"));
        assert!(at(&steps, "addr del 198.51.100.10/32") < at(&steps, "link set tunl0 down"));
    }

    #[test]
    fn a_vip_that_stays_keeps_its_silence() {
        let other = "198.51.100.11".parse().unwrap();
        let steps = text(&remove(&[VIP], Outer::V4, &[other])).join("\n");
        assert!(steps.contains("addr del 198.51.100.10/32"), "{steps}");
        assert!(!steps.contains("arp_ignore") && !steps.contains("link set"), "{steps}");
    }

    #[test]
    fn devices_follow_both_ip_versions() {
        let six = Outer::V6("fd00::1".parse().unwrap());
        let steps =
            text(&apply(&desired(six, Mss::Unclamped), &MssMethod::Nftables, None).unwrap());
        assert!(steps.contains(&"modprobe ip6_tunnel".to_owned()), "{steps:?}");
        assert!(steps.contains(&"ip addr replace 198.51.100.10/32 dev adit-ip6".to_owned()));
        let steps =
            text(&apply(&desired(Outer::V4, Mss::Unclamped), &MssMethod::Nftables, None).unwrap());
        assert!(steps.contains(&"ip addr replace 2001:db8:100::10/128 dev sit0 nodad".to_owned()));
    }

    #[test]
    fn a_tunnel_that_is_there_is_left_alone() {
        let local = "fd00::1".parse().unwrap();
        let wanted = desired(Outer::V6(local), Mss::Unclamped);
        let with = |tunnel6| text(&apply(&wanted, &MssMethod::Nftables, tunnel6).unwrap());
        let made = |steps: &[String]| steps.iter().any(|step| step.contains("link add adit-ip6"));
        assert!(made(&with(None)));
        let other = "fd00::2".parse().unwrap();
        let refused = apply(&wanted, &MssMethod::Nftables, Some(other));
        assert_eq!(refused, Err(PlanError::OtherTunnel { local: other }));
        let again = with(Some(local));
        assert!(!made(&again) && !again.iter().any(|s| s.contains("link del")), "{again:?}");
    }

    #[test]
    fn segments_leave_room_for_the_outer_header() {
        let wanted = desired(Outer::V4, Mss::ForPathMtu(1500));
        let routes =
            MssMethod::Route { v4: Some("via 10.0.0.1".into()), v6: Some("via fd00::1".into()) };
        let steps = text(&apply(&wanted, &routes, None).unwrap()).join("\n");
        // 1500 − 20 outer − 20 inner − 20 TCP; with an IPv6 inner header 20 less.
        assert!(steps.contains("default via 10.0.0.1 advmss 1440 table"), "{steps}");
        assert!(steps.contains("default via fd00::1 advmss 1420 table"), "{steps}");
        let steps = text(&apply(&wanted, &MssMethod::Nftables, None).unwrap()).join("\n");
        assert!(steps.contains("size > 1440 tcp option maxseg size set 1440"), "{steps}");
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let none = Desired { vips: Vec::new(), outer: Outer::V4, mss: Mss::Unclamped };
        assert_eq!(apply(&none, &MssMethod::Nftables, None), Err(PlanError::NoVip));
        let tight = desired(Outer::V4, Mss::ForPathMtu(500));
        assert_eq!(
            apply(&tight, &MssMethod::Nftables, None),
            Err(PlanError::PathTooSmall { mtu: 500 })
        );
        let routeless = MssMethod::Route { v4: None, v6: None };
        assert_eq!(
            apply(&desired(Outer::V4, Mss::ForPathMtu(1500)), &routeless, None),
            Err(PlanError::NoRoute { vip: VIP })
        );
    }
}
