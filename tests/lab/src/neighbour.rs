//! Asking an Ethernet segment who has an address: ARP (RFC 826) and neighbour solicitations
//! (RFC 4861), with every answer and when it came, which the kernel's own cache does not tell.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use etherparse::{Icmpv6Header, Icmpv6Type, PacketBuilder};

use crate::error::{Context, LabError, Result};
use crate::io::packet::PacketSocket;
use crate::namespace::Namespace;
use crate::packet::{ICMPV6, IpPacket};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// One answer to the question who has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The hardware address that was told.
    pub mac: Mac,
    /// Time since the question.
    pub after: Duration,
    /// The Override flag of a neighbour advertisement; always set for ARP.
    pub overriding: bool,
}

/// Asks once for `target` from `device` of `host`, and collects all answers of `window`.
///
/// # Errors
/// When the device has no address of that version.
pub fn resolve(
    host: &Namespace,
    device: &str,
    target: IpAddr,
    window: Duration,
) -> Result<Vec<Answer>> {
    ask(host, device, target, window, usize::MAX)
}

/// Asks once for `target` and returns the first answer, if there is one within `limit`.
///
/// # Errors
/// As [`resolve`].
pub fn first_answer(
    host: &Namespace,
    device: &str,
    target: IpAddr,
    limit: Duration,
) -> Result<Option<Answer>> {
    Ok(ask(host, device, target, limit, 1)?.pop())
}

#[allow(clippy::disallowed_methods, reason = "the time of answers is what tests want to know")]
fn ask(
    host: &Namespace,
    device: &str,
    target: IpAddr,
    window: Duration,
    enough: usize,
) -> Result<Vec<Answer>> {
    let what = || format!("ask {device} of {} for {target}", host.label());
    let (mac, source) = own(host, device, target.is_ipv6())?;
    let question = match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => arp_request(mac, source, target),
        (IpAddr::V6(source), IpAddr::V6(target)) => solicitation(mac, source, target),
        _ => return Err(LabError::failed(what(), "no own address of that version")),
    };
    let socket = host.enter(|| PacketSocket::open(device))?.context(what)?;
    let asked = Instant::now();
    socket.send(&question).context(what)?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; 2048];
    while let Some(left) = window.checked_sub(asked.elapsed()).filter(|left| !left.is_zero())
        && answers.len() < enough
    {
        socket.set_timeout(left.max(Duration::from_millis(1))).context(what)?;
        let Some(received) = socket.receive(&mut buffer).context(what)? else { continue };
        if received.outgoing {
            continue;
        }
        let frame = &buffer[..received.length];
        let told = match target {
            IpAddr::V4(target) => arp_reply(frame, target).map(|mac| (mac, true)),
            IpAddr::V6(target) => advertisement(frame, target),
        };
        if let Some((mac, overriding)) = told {
            answers.push(Answer { mac, after: asked.elapsed(), overriding });
        }
    }
    Ok(answers)
}

/// The hardware address of a device, and its first address of a version.
///
/// # Errors
/// When there is none.
pub fn own(host: &Namespace, device: &str, ipv6: bool) -> Result<(Mac, IpAddr)> {
    let listing = host.sh(&format!("ip -j addr show dev {device} scope global"))?;
    let what = || format!("read the addresses of {device} of {}", host.label());
    let links: serde_json::Value = serde_json::from_str(&listing).context(what)?;
    let link = &links[0];
    let mac = link["address"].as_str().and_then(parse_mac);
    let family = if ipv6 { "inet6" } else { "inet" };
    let address = link["addr_info"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|info| info["family"] == family)
        .and_then(|info| info["local"].as_str()?.parse().ok());
    mac.zip(address).ok_or_else(|| LabError::failed(what(), listing))
}

fn parse_mac(text: &str) -> Option<Mac> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// MAC of a device, which need not have an address.
///
/// # Errors
/// When there is no such device.
pub fn link_address(host: &Namespace, device: &str) -> Result<Mac> {
    let listing = host.sh(&format!("ip -j link show dev {device}"))?;
    let what = || format!("read the MAC of {device} of {}", host.label());
    let links: serde_json::Value = serde_json::from_str(&listing).context(what)?;
    let mac = links[0]["address"].as_str().and_then(parse_mac);
    mac.ok_or_else(|| LabError::failed(what(), listing))
}

/// An ARP request, as a whole frame.
#[must_use]
pub fn arp_request(mac: Mac, source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    // Type ARP; Ethernet, IPv4, 6, 4, request.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(source.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

fn arp_reply(frame: &[u8], target: Ipv4Addr) -> Option<Mac> {
    let is_reply = frame.get(12..22)? == [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2];
    let about = frame.get(28..32)? == target.octets();
    (is_reply && about).then(|| frame[22..28].try_into().ok())?
}

/// A neighbour solicitation to the target's solicited-node group, as a whole frame.
///
/// # Panics
/// Never: the packet is short.
#[must_use]
pub fn solicitation(mac: Mac, source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let low = &target.octets()[13..];
    let mut group = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(low);
    let group_mac = [0x33, 0x33, 0xff, low[0], low[1], low[2]];
    let mut payload = target.octets().to_vec();
    // Option 1: source link-layer address, one unit of 8 bytes.
    payload.extend([1, 1]);
    payload.extend(mac);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac, group_mac)
        .ipv6(source.octets(), group, 255)
        .icmpv6(Icmpv6Type::NeighborSolicitation)
        .write(&mut frame, &payload)
        .expect("a short packet");
    frame
}

fn advertisement(frame: &[u8], target: Ipv6Addr) -> Option<(Mac, bool)> {
    let ip = IpPacket::from_ethernet(frame).filter(|ip| ip.protocol == ICMPV6)?;
    let (header, body) = Icmpv6Header::from_slice(&ip.payload).ok()?;
    let Icmpv6Type::NeighborAdvertisement(flags) = header.icmp_type else { return None };
    // Without the option the frame's own source is the answer (RFC 4861 §7.2.5).
    let told = match body.get(16..24) {
        Some([2, 1, mac @ ..]) => mac.try_into().ok()?,
        _ => frame[6..12].try_into().ok()?,
    };
    (body.get(..16)? == target.octets()).then_some((told, flags.r#override))
}
