//! IPsec policies, by raw netlink: the route library does not speak NETLINK_XFRM.
//!
//! Direct egress goes around the kernel's IP output, and with it around IPsec. So a real server
//! that any outgoing policy might concern is sent to through the kernel.

use super::NetlinkError;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_XFRM};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

// linux/xfrm.h
const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
const XFRM_POLICY_OUT: u8 = 1;
const XFRM_USERPOLICY_BLOCK: u8 = 1;
const XFRMNLGRP_EXPIRE: u32 = 2;
const XFRMNLGRP_POLICY: u32 = 4;
// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const HEADER: usize = 16;

/// Offsets in `struct xfrm_userpolicy_info`.
mod offset {
    use std::ops::Range;
    pub(super) const DESTINATION: Range<usize> = 0..16;
    pub(super) const SOURCE: Range<usize> = 16..32;
    pub(super) const FAMILY: Range<usize> = 40..42;
    pub(super) const DESTINATION_PREFIX: usize = 42;
    pub(super) const SOURCE_PREFIX: usize = 43;
    pub(super) const PROTOCOL: usize = 44;
    pub(super) const INTERFACE: Range<usize> = 48..52;
    pub(super) const DIRECTION: usize = 160;
    /// Up to and including the direction.
    pub(super) const LENGTH: usize = 161;
}

/// The kernel answers a dump as fast as it is read; waiting longer means something is broken.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What an outgoing policy applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selector {
    destination: (IpAddr, u8),
    source: (IpAddr, u8),
    /// 0: any.
    protocol: u8,
    /// 0: any.
    interface: u32,
}

/// The IPsec policies that outgoing packets meet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XfrmPolicies {
    selectors: Vec<Selector>,
    /// What no policy matches is blocked (`ip xfrm policy setdefault out block`).
    blocks_by_default: bool,
}

impl XfrmPolicies {
    /// Reads the kernel's policies. A kernel without IPsec has none.
    ///
    /// # Errors
    /// When the kernel does not let us look.
    pub async fn read() -> Result<Self, NetlinkError> {
        let reading = async {
            let mut socket = match open(0) {
                Ok(socket) => socket,
                Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
                    return Ok(XfrmPolicies::default());
                }
                Err(error) => return Err(error),
            };
            let selectors = dump(&mut socket).await?;
            let blocks_by_default = default_blocks(&mut socket).await?;
            Ok(XfrmPolicies { selectors, blocks_by_default })
        };
        tokio::time::timeout(ANSWER_WITHIN, reading)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|source| NetlinkError::new("cannot read IPsec policies", source))
    }

    /// Whether a policy might concern any packet to `destination`, whoever sent it.
    #[must_use]
    pub fn concern_any(&self, destination: IpAddr, interface: u32) -> bool {
        self.blocks_by_default
            || self.selectors.iter().any(|s| {
                contains(s.destination, destination)
                    && (s.interface == 0 || s.interface == interface)
            })
    }

    /// Whether a policy might concern tunnel packets from `source` to `destination`. Where the
    /// source is not known yet, every policy's source matches.
    #[must_use]
    pub fn concern(
        &self,
        source: Option<IpAddr>,
        destination: IpAddr,
        protocols: &[u8],
        interface: u32,
    ) -> bool {
        self.blocks_by_default
            || self.selectors.iter().any(|s| {
                contains(s.destination, destination)
                    && source.is_none_or(|address| contains(s.source, address))
                    && (s.protocol == 0 || protocols.contains(&s.protocol))
                    && (s.interface == 0 || s.interface == interface)
            })
    }
}

/// A socket that hears of every change of the policies.
pub(super) fn watch() -> io::Result<TokioSocket> {
    open(1 << (XFRMNLGRP_POLICY - 1) | 1 << (XFRMNLGRP_EXPIRE - 1))
}

fn open(groups: u32) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_XFRM)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

async fn dump(socket: &mut TokioSocket) -> io::Result<Vec<Selector>> {
    // struct xfrm_userpolicy_id, empty: every policy.
    socket.send(&request(XFRM_MSG_GETPOLICY, NLM_F_DUMP, &[0; 64])).await?;
    let mut selectors = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full().await?;
        for (kind, payload) in messages(&bytes) {
            match kind {
                XFRM_MSG_NEWPOLICY => selectors.extend(outgoing(payload)),
                NLMSG_DONE => return Ok(selectors),
                NLMSG_ERROR => return Err(error(payload)),
                _ => {}
            }
        }
    }
}

/// Linux 5.15 and later can block what no policy matches; earlier kernels refuse the question.
async fn default_blocks(socket: &mut TokioSocket) -> io::Result<bool> {
    socket.send(&request(XFRM_MSG_GETDEFAULT, 0, &[0; 4])).await?;
    let (bytes, _) = socket.recv_from_full().await?;
    match messages(&bytes).next() {
        // struct xfrm_userpolicy_default { in, fwd, out }
        Some((XFRM_MSG_GETDEFAULT, [_, _, out, ..])) => Ok(*out == XFRM_USERPOLICY_BLOCK),
        Some((NLMSG_ERROR, payload)) if error(payload).raw_os_error() == Some(libc::EINVAL) => {
            Ok(false)
        }
        Some((NLMSG_ERROR, payload)) => Err(error(payload)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn request(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + payload.len()).expect("payloads here are constants");
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]); // sequence and port: one question at a time
    bytes.extend(payload);
    bytes
}

/// The messages of one datagram: kind and payload.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        let length = usize::try_from(length).ok()?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

fn error(payload: &[u8]) -> io::Error {
    match payload.first_chunk::<4>() {
        Some(code) => io::Error::from_raw_os_error(i32::from_ne_bytes(*code).saturating_neg()),
        None => io::ErrorKind::InvalidData.into(),
    }
}

/// The selector of a policy, if it is for packets that leave.
fn outgoing(policy: &[u8]) -> Option<Selector> {
    let policy = policy.get(..offset::LENGTH)?;
    if policy[offset::DIRECTION] != XFRM_POLICY_OUT {
        return None;
    }
    let family = u16::from_ne_bytes(policy[offset::FAMILY].try_into().ok()?);
    let interface = u32::from_ne_bytes(policy[offset::INTERFACE].try_into().ok()?);
    Some(Selector {
        destination: (
            address(family, &policy[offset::DESTINATION])?,
            policy[offset::DESTINATION_PREFIX],
        ),
        source: (address(family, &policy[offset::SOURCE])?, policy[offset::SOURCE_PREFIX]),
        protocol: policy[offset::PROTOCOL],
        interface,
    })
}

fn address(family: u16, bytes: &[u8]) -> Option<IpAddr> {
    if i32::from(family) == libc::AF_INET {
        Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into())
    } else {
        // A policy of family "any" has prefix length 0 and concerns both.
        Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into())
    }
}

fn contains((network, length): (IpAddr, u8), address: IpAddr) -> bool {
    match (network, address) {
        (_, _) if length == 0 => true,
        (IpAddr::V4(n), IpAddr::V4(a)) => {
            let shift = 32 - u32::from(length.min(32));
            n.to_bits() >> shift == a.to_bits() >> shift
        }
        (IpAddr::V6(n), IpAddr::V6(a)) => {
            let shift = 128 - u32::from(length.min(128));
            n.to_bits() >> shift == a.to_bits() >> shift
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
impl XfrmPolicies {
    /// One for packets of a protocol (0: any) to one address.
    pub(super) fn for_tests(destination: IpAddr, protocol: u8) -> Self {
        let source = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let length = if destination.is_ipv4() { 32 } else { 128 };
        let destination = (destination, length);
        let selectors = vec![Selector { destination, source, protocol, interface: 0 }];
        XfrmPolicies { selectors, blocks_by_default: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(destination: &str, length: u8, protocol: u8) -> XfrmPolicies {
        let destination = (destination.parse().unwrap(), length);
        let source = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let selectors = vec![Selector { destination, source, protocol, interface: 0 }];
        XfrmPolicies { selectors, blocks_by_default: false }
    }

    #[test]
    fn a_policy_concerns_what_its_selector_covers() {
        let to = |text: &str| text.parse::<IpAddr>().unwrap();
        let net = policies("10.20.0.0", 16, 0);
        assert!(net.concern(None, to("10.20.3.4"), &[4], 2));
        assert!(!net.concern(None, to("10.21.3.4"), &[4], 2));
        assert!(!net.concern(None, to("2001:db8::1"), &[4], 2));
        // One for TCP alone leaves tunnel packets in peace.
        assert!(!policies("10.20.0.0", 16, 6).concern(None, to("10.20.3.4"), &[4, 41], 2));
        assert!(policies("10.20.0.0", 16, 41).concern(None, to("10.20.3.4"), &[4, 41], 2));
        assert!(policies("10.20.0.0", 16, 6).concern_any(to("10.20.3.4"), 2));
        assert!(!policies("10.20.0.0", 16, 6).concern_any(to("10.21.3.4"), 2));
        let all = XfrmPolicies { blocks_by_default: true, ..XfrmPolicies::default() };
        assert!(all.concern(None, to("192.0.2.1"), &[4], 2));
    }

    #[test]
    fn hostile_messages_end_the_walk() {
        for bytes in [&[][..], &[0; 3], &[0; 16], &[255; 32], &[8, 0, 0, 0, 1, 0, 0, 0]] {
            assert!(messages(bytes).count() <= 1, "{bytes:?}");
        }
        assert_eq!(outgoing(&[0; 100]), None);
    }
}
