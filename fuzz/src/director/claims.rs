//! What an ICMP error claims, read by etherparse: whom the core may believe, and who is meant.

use std::net::IpAddr;

use adit::dataplane::ids::{RealId, VipId};
use adit::dataplane::packet::{address, protocol};
use etherparse::{IpNumber, Ipv4Header, Ipv6Header};

use super::checks::{FlowId, Flows};
use super::world::{COOKIE_SECRETS, DIRECTOR_4, DIRECTOR_6, REALS, VIPS};
use crate::checksums;

/// Bytes of the inner packet that a cookie is made of.
const COOKIE_BYTES: usize = 8;

/// An ICMP error, as it was written.
pub(super) struct Claim<'a> {
    /// ICMP type.
    kind: u8,
    v4: bool,
    quote: &'a [u8],
    /// A length field (RFC 4884) may say that less of the body is the quote.
    has_length: bool,
    /// Whom the message was sent to.
    destination: IpAddr,
}

/// Whose packet an error to a VIP quotes.
pub(super) enum Answer {
    /// No packet from that VIP with ports in it.
    Nobody,
    /// Extension headers stand before the ports.
    Unread,
    /// One of this flow.
    Of(FlowId),
}

/// What an error about a tunnel quotes.
struct Outer<'a> {
    real: RealId,
    /// The identification, where it is a cookie.
    cookie: Option<u16>,
    inner: &'a [u8],
}

/// A quoted packet: its ends, its protocol, and what is behind its header.
struct Quoted<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// The identification of a packet with DF.
    cookie: Option<u16>,
    later_fragment: bool,
    rest: &'a [u8],
}

impl<'a> Quoted<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        if bytes.first()? >> 4 == 4 {
            let (header, rest) = Ipv4Header::from_slice(bytes).ok()?;
            return Some(Self {
                source: header.source.into(),
                destination: header.destination.into(),
                protocol: header.protocol.0,
                cookie: header.dont_fragment.then_some(header.identification),
                later_fragment: header.fragment_offset.value() != 0,
                rest,
            });
        }
        let (header, rest) = Ipv6Header::from_slice(bytes).ok()?;
        Some(Self {
            source: header.source.into(),
            destination: header.destination.into(),
            protocol: header.next_header.0,
            cookie: None,
            later_fragment: false,
            rest,
        })
    }

    fn has_extensions(&self) -> bool {
        self.source.is_ipv6() && IpNumber(self.protocol).is_ipv6_ext_header_value()
    }

    /// Source and destination port.
    fn ports(&self) -> Option<(u16, u16)> {
        let ports = self.rest.first_chunk::<8>().filter(|_| !self.later_fragment);
        let &[a, b, c, d, ..] =
            ports.filter(|_| matches!(self.protocol, protocol::TCP | protocol::UDP))?;
        Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }

    /// The flow of a client's packet.
    fn flow(&self) -> Option<FlowId> {
        let (client_port, vip_port) = self.ports()?;
        Some((
            address(self.source),
            client_port,
            vip_of(self.destination)?,
            vip_port,
            self.protocol,
        ))
    }

    /// The flow of a packet to a client.
    fn answered_flow(&self) -> Option<FlowId> {
        let (vip_port, client_port) = self.ports()?;
        let client = address(self.destination);
        Some((client, client_port, vip_of(self.source)?, vip_port, self.protocol))
    }
}

impl<'a> Claim<'a> {
    /// An error of type `kind` with this second half of its header and this quote.
    pub(super) fn new(kind: u8, rest: [u8; 4], quote: &'a [u8], destination: IpAddr) -> Self {
        let v4 = destination.is_ipv4();
        let has_length = rest[usize::from(v4)] != 0;
        Self { kind, v4, quote, has_length, destination }
    }

    /// Whether it is an error that directors know: not a redirect, nor a question.
    pub(super) fn is_known(&self) -> bool {
        if self.v4 { matches!(self.kind, 3 | 11 | 12) } else { matches!(self.kind, 1..=4) }
    }

    /// Whether nobody may answer it (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
    pub(super) fn is_error(&self) -> bool {
        super::checks::is_icmp_error(self.v4, self.kind)
    }

    fn outer(&self) -> Option<Outer<'a>> {
        let quoted = Quoted::read(self.quote)?;
        let own = if quoted.source.is_ipv4() { DIRECTOR_4 } else { DIRECTOR_6 };
        let tunnel = matches!(IpNumber(quoted.protocol), IpNumber::IPV4 | IpNumber::IPV6);
        let real = REALS.iter().position(|real| *real == quoted.destination)?;
        let real = RealId(u32::try_from(real).expect("six real servers"));
        let ours = quoted.source == own && (tunnel || quoted.has_extensions());
        // Behind extension headers nothing is looked for.
        let inner = if tunnel { quoted.rest } else { &[] };
        ours.then_some(Outer { real, cookie: quoted.cookie, inner })
    }

    /// The message was believed: it must prove that its author saw a packet of ours.
    pub(super) fn must_be_proven(&self, alive: &Flows) {
        let outer = self.outer().expect("it quotes a packet to a real server");
        let flow = Quoted::read(outer.inner).and_then(|inner| alive.get(&inner.flow()?));
        if let Some(cookie) = outer.cookie {
            assert!(is_cookie(outer.inner, cookie), "a wrong cookie was believed");
            let elsewhere = flow.is_some_and(|flow| flow.real != outer.real);
            assert!(!elsewhere || self.has_length, "it quotes a flow of another real server");
        } else if !outer.inner.is_empty() {
            let flow = flow.expect("without a cookie the quoted flow must be there");
            assert_eq!(flow.real, outer.real, "it quotes a flow of another real server");
        }
    }

    /// A path MTU was learned: for the real server that is quoted.
    pub(super) fn must_be_about(&self, real: RealId) {
        assert_eq!(self.outer().map(|outer| outer.real), Some(real));
    }

    /// Whether it quotes just what a cookie is checked by, and the cookie is right.
    pub(super) fn has_right_cookie_alone(&self) -> bool {
        self.outer().is_some_and(|outer| {
            outer.inner.len() == COOKIE_BYTES
                && outer.cookie.is_some_and(|cookie| is_cookie(outer.inner, cookie))
        })
    }

    /// Whose packet it quotes, as an error to a VIP.
    pub(super) fn answer(&self) -> Answer {
        let Some(quoted) = Quoted::read(self.quote) else { return Answer::Nobody };
        if quoted.source != self.destination {
            return Answer::Nobody;
        }
        match quoted.answered_flow() {
            Some(flow) => Answer::Of(flow),
            None if quoted.has_extensions() => Answer::Unread,
            None => Answer::Nobody,
        }
    }

    /// Whether all of the body is the quote, whatever the header says.
    pub(super) fn is_whole(&self) -> bool {
        !self.has_length
    }
}

/// Whether the first bytes of an inner packet, folded, make this cookie with a secret in force.
fn is_cookie(inner: &[u8], cookie: u16) -> bool {
    let Some(bytes) = inner.first_chunk::<COOKIE_BYTES>() else { return false };
    let folded =
        bytes.chunks(2).fold(0, |fold, pair| fold ^ u16::from_be_bytes([pair[0], pair[1]]));
    COOKIE_SECRETS.iter().any(|secret| match folded ^ secret {
        0 => cookie == u16::MAX,
        right => cookie == right,
    })
}

fn vip_of(address: IpAddr) -> Option<VipId> {
    let vip = VIPS.iter().position(|vip| *vip == address)?;
    Some(VipId(u32::try_from(vip).expect("three VIPs")))
}

/// The real server that an outer packet goes to, a fragment too.
pub(super) fn real_of(outer: &[u8]) -> Option<RealId> {
    let destination = Quoted::read(outer)?.destination;
    let real = REALS.iter().position(|real| *real == destination)?;
    Some(RealId(u32::try_from(real).expect("six real servers")))
}

/// The outer packet with another packet in it, its cookie right where it has one; `None` when it has
/// more than a plain header.
pub(super) fn wrapped_as(outer: &[u8], inner: &[u8]) -> Option<Vec<u8>> {
    let protocol = if inner[0] >> 4 == 4 { IpNumber::IPV4 } else { IpNumber::IPV6 };
    if outer[0] == 0x45 {
        let mut packet = [&outer[..20], inner].concat();
        let length = u16::try_from(packet.len()).ok()?;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[9] = protocol.0;
        if packet[6] & 0x40 != 0 {
            let cookie = adit::dataplane::path_mtu::cookie(inner, COOKIE_SECRETS[0]);
            packet[4..6].copy_from_slice(&cookie.to_be_bytes());
        }
        let checksum = checksums::ipv4(&packet);
        packet[10..12].copy_from_slice(&checksum);
        return Some(packet);
    }
    if !matches!(IpNumber(outer[6]), IpNumber::IPV4 | IpNumber::IPV6) {
        return None;
    }
    let mut packet = [&outer[..40], inner].concat();
    let length = u16::try_from(inner.len()).ok()?;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet[6] = protocol.0;
    Some(packet)
}
