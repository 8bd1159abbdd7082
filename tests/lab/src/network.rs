//! Wires and switches between hosts.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::error::Result;
use crate::namespace::Namespace;

/// Connects two hosts by a wire; both ends come up.
///
/// Offloads are off, as on all wires of the lab: sniffers and directors see the packets that a
/// wire would carry, no larger than the MTU and with complete checksums.
///
/// # Errors
/// When a device of that name exists.
pub fn wire(a: &Namespace, a_device: &str, b: &Namespace, b_device: &str) -> Result<()> {
    a.ip(&format!(
        "link add {a_device} type veth peer name {b_device} netns {}\nlink set {a_device} up",
        b.name()
    ))?;
    b.ip(&format!("link set {b_device} up"))?;
    offloads_off(a, a_device)?;
    offloads_off(b, b_device)
}

fn offloads_off(host: &Namespace, device: &str) -> Result<()> {
    host.sh(&format!("ethtool -K {device} tx off rx off tso off gso off gro off >/dev/null"))
        .map(drop)
}

/// Gives a device its addresses, as in `10.0.0.1/24` or `fd00::1/64`; the device comes up.
///
/// # Errors
/// When the device does not exist.
pub fn addresses(host: &Namespace, device: &str, addresses: &[&str]) -> Result<()> {
    host.ip(&address_lines(device, addresses))
}

/// Lines for `ip -batch` that do the same.
#[must_use]
pub fn address_lines(device: &str, addresses: &[&str]) -> String {
    let mut lines = format!("link set {device} up\n");
    for address in addresses {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        let _ = writeln!(lines, "addr add {address} dev {device}{nodad}");
    }
    lines
}

/// Makes a host a router: forwarding on, no reverse-path filter, since direct return is
/// asymmetric by design.
///
/// # Errors
/// When the kernel refuses.
pub fn make_router(host: &Namespace) -> Result<()> {
    for (name, value) in [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
    ] {
        host.sysctl(name, value)?;
    }
    Ok(())
}

/// An address for a bridge, in the locally administered range.
///
/// A bridge without one of its own takes the lowest of its ports', so that a port which is plugged in later
/// may change it, and neighbours send into the void until they ask again (`br_stp_recalculate_bridge_id`).
fn ethernet_address(host: &Namespace, bridge: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (host.name(), bridge).hash(&mut hasher);
    let bytes = hasher.finish().to_be_bytes();
    let words: Vec<_> = bytes[..5].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("02:{}", words.join(":"))
}

/// An Ethernet segment: a switch that is a bridge device of one host, usually the router of the
/// segment, which has its addresses on the bridge.
#[derive(Clone, Debug)]
pub struct Segment {
    host: Namespace,
    bridge: String,
}

impl Segment {
    /// Makes a segment as the device `bridge` of `host`, with the host's addresses on it.
    ///
    /// # Errors
    /// When the device exists.
    pub fn create(host: &Namespace, bridge: &str, own: &[&str]) -> Result<Self> {
        host.ip(&format!(
            "link add {bridge} address {} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n{}",
            ethernet_address(host, bridge),
            address_lines(bridge, own)
        ))?;
        offloads_off(host, bridge)?;
        Ok(Self { host: host.clone(), bridge: bridge.to_owned() })
    }

    /// Plugs a host's new device into the segment. The port at the switch is named as the host.
    ///
    /// # Errors
    /// When a device of that name exists.
    pub fn plug(&self, host: &Namespace, device: &str) -> Result<()> {
        let port = host.label();
        wire(&self.host, port, host, device)?;
        self.host.ip(&format!("link set {port} master {}", self.bridge))
    }

    /// Cuts or mends the cable of a host.
    ///
    /// # Errors
    /// When the host was never plugged in.
    pub fn carrier(&self, host: &Namespace, connected: bool) -> Result<()> {
        let state = if connected { "up" } else { "down" };
        self.host.ip(&format!("link set {} {state}", host.label()))
    }

    /// The host that carries the switch.
    #[must_use]
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// The switch's device.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.bridge
    }
}
