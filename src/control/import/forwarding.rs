//! How packets reach a real server in IPVS, and what becomes of that.

use super::address::number;
use super::remarks::not_a_number;
use super::report::{Remark, visible};
use crate::control::config::RealTunnel;
use adit_tunnel::GUE_PORT;
use std::net::IpAddr;

/// How IPVS sends packets to a real server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Method {
    /// By IP in IP (`-i`, `TUN`).
    IpInIp,
    /// By GUE (`--tun-type gue`, `TUN type gue`), to this port, with the UDP checksum filled in or not.
    Gue { port: Option<u16>, checksum: Option<bool> },
    /// By GRE (`--tun-type gre`, `TUN type gre`), with its checksum or without.
    Gre { checksum: Option<bool> },
    /// By a tunnel that IPVS does not have.
    UnknownTunnel(String),
    /// By its MAC alone (`-g`, `DR`).
    Direct,
    /// With another destination (`-m`, `NAT`).
    Masquerade,
}

impl Method {
    /// The tunnel of this name.
    pub(super) fn tunnel(kind: &str) -> Self {
        match kind {
            "ipip" => Self::IpInIp,
            "gue" => Self::Gue { port: None, checksum: None },
            "gre" => Self::Gre { checksum: None },
            other => Self::UnknownTunnel(other.to_owned()),
        }
    }

    /// Takes the port of a tunnel.
    ///
    /// # Errors
    /// What is said of one that cannot be taken.
    pub(super) fn take_port(&mut self, text: &str) -> Result<(), Remark> {
        let Self::Gue { port, .. } = self else { return Err(foreign_option()) };
        let read = number::<u16>(text).filter(|number| *number != 0).ok_or_else(not_a_number)?;
        *port = Some(read);
        Ok(())
    }

    /// Takes what is said of a tunnel's checksum.
    ///
    /// # Errors
    /// What is said of what cannot be taken.
    pub(super) fn take_checksum(&mut self, asked: Checksum) -> Result<(), Remark> {
        let (Self::Gue { checksum, .. } | Self::Gre { checksum }) = self else {
            return Err(foreign_option());
        };
        *checksum = Some(match asked {
            Checksum::Without => false,
            Checksum::With => true,
            Checksum::Remote => return Err(remote_checksum()),
        });
        Ok(())
    }
}

/// What IPVS is told of a tunnel's checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checksum {
    /// `nocsum`
    Without,
    /// `csum`
    With,
    /// `remcsum`: the receiver computes that of the packet inside.
    Remote,
}

impl Checksum {
    /// As keepalived names it, and `ipvsadm` behind `--tun-`.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "nocsum" => Some(Self::Without),
            "csum" => Some(Self::With),
            "remcsum" => Some(Self::Remote),
            _ => None,
        }
    }
}

/// What becomes of a real server by its method.
#[derive(Debug)]
pub(super) enum Becomes {
    /// It is imported, reached so; with what is to be said of that.
    RealServer(RealTunnel, Option<Remark>),
    /// It is written as a comment with these words beside it, and reported.
    Comment(&'static str, Remark),
    /// It is reported only.
    Nothing(Remark),
}

/// What becomes of the real server at `address` that is reached by `method`; `other_port` is whether its
/// port is another than the VIP's.
pub(super) fn becomes(method: &Method, address: IpAddr, other_port: bool) -> Becomes {
    match method {
        Method::IpInIp => Becomes::RealServer(RealTunnel::Ipip, None),
        Method::Gue { port, checksum } => gue(*port, *checksum, address),
        Method::Gre { checksum } => {
            Becomes::RealServer(RealTunnel::Gre { checksum: checksum.unwrap_or(false) }, None)
        }
        Method::UnknownTunnel(kind) => unknown_tunnel(kind),
        Method::Direct => direct(),
        Method::Masquerade if other_port => translated_port(),
        Method::Masquerade => masqueraded(),
    }
}

const OTHER_TUNNEL: &str = "another tunnel than IPVS has; see the report";

/// What to do with a real server that IP in IP could reach.
const PREPARE: &str = "prepare it for IP in IP with `adit-realserver apply --vip …` and take the \
                       comment signs away";

/// Where nothing is said of the checksum, it is as Adit has it: over IPv6 a receiver that takes packets
/// without takes those with one too.
fn gue(port: Option<u16>, checksum: Option<bool>, address: IpAddr) -> Becomes {
    let checksum = checksum.unwrap_or(address.is_ipv6());
    let remark = port.is_none().then(|| {
        Remark::changed(
            format!("GUE without a port, which IPVS does not take; {GUE_PORT} is taken"),
            "change `port` in the configuration if the real server listens on another",
        )
    });
    let port = port.unwrap_or(GUE_PORT);
    Becomes::RealServer(RealTunnel::Gue { port, checksum }, remark)
}

/// What is said of a port or a checksum where there is none.
fn foreign_option() -> Remark {
    Remark::unknown(
        "it belongs to another kind of tunnel: a port to GUE, a checksum to GUE and GRE",
        "leave it out",
    )
}

fn remote_checksum() -> Remark {
    Remark::left_out(
        "remote checksum offload has no equal; packets go without, which the receiver takes too",
        "nothing",
    )
}

fn unknown_tunnel(kind: &str) -> Becomes {
    let why =
        format!("IPVS has no tunnel `{}`; the real server is written as a comment", visible(kind));
    Becomes::Comment(OTHER_TUNNEL, Remark::unknown(why, PREPARE))
}

fn direct() -> Becomes {
    let remark = Remark::changed(
        "direct routing (DR) is for Ethernet segments of the director: a real server behind a gateway \
         gets nothing here",
        "see that `ip route get` names no gateway for it; otherwise use a tunnel",
    );
    Becomes::RealServer(RealTunnel::Direct, Some(remark))
}

fn masqueraded() -> Becomes {
    Becomes::Comment(
        "masqueraded; see the report",
        Remark::left_out(
            "masquerading (NAT) has no equal: the real server itself must own the VIP and answer \
             the client; it is written as a comment",
            "prepare it with `adit-realserver apply --vip …` and take the comment signs away, or \
             leave this service with IPVS",
        ),
    )
}

fn translated_port() -> Becomes {
    Becomes::Nothing(Remark::left_out(
        "masquerading to another port has no equal: ports are never changed",
        "let the real server listen on the VIP's port, or leave this service with IPVS",
    ))
}
