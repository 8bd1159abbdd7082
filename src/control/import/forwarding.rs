//! How packets reach a real server in IPVS, and what becomes of that.

use super::report::{Remark, visible};

/// How IPVS sends packets to a real server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Method {
    /// By IP in IP (`-i`, `TUN`).
    IpInIp,
    /// By GUE (`--tun-type gue`, `TUN type gue`).
    Gue,
    /// By GRE (`--tun-type gre`, `TUN type gre`).
    Gre,
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
            "gue" => Self::Gue,
            "gre" => Self::Gre,
            other => Self::UnknownTunnel(other.to_owned()),
        }
    }
}

/// What becomes of a real server by its method.
#[derive(Debug)]
pub(super) enum Becomes {
    /// It is imported as it is.
    RealServer,
    /// It is written as a comment with these words beside it, and reported.
    Comment(&'static str, Remark),
    /// It is reported only.
    Nothing(Remark),
}

/// What becomes of a real server that is reached by `method`; `other_port` is whether its port is
/// another than the VIP's.
pub(super) fn becomes(method: &Method, other_port: bool) -> Becomes {
    match method {
        Method::IpInIp => Becomes::RealServer,
        Method::Gue => gue(),
        Method::Gre => gre(),
        Method::UnknownTunnel(kind) => unknown_tunnel(kind),
        Method::Direct => direct(),
        Method::Masquerade if other_port => translated_port(),
        Method::Masquerade => masqueraded(),
    }
}

const OTHER_TUNNEL: &str = "another tunnel than IP in IP; see the report";

/// What to do with a real server that IP in IP could reach.
const PREPARE: &str = "prepare it for IP in IP with `adit-realserver apply --vip …` and take the \
                       comment signs away";

fn gue() -> Becomes {
    let why = "GUE tunnels come in a later release; the real server is written as a comment";
    Becomes::Comment(OTHER_TUNNEL, Remark::later(why, PREPARE))
}

fn gre() -> Becomes {
    let why = "GRE tunnels come in a later release; the real server is written as a comment";
    Becomes::Comment(OTHER_TUNNEL, Remark::later(why, PREPARE))
}

/// What becomes of a port or a checksum of a tunnel.
pub(super) fn tunnel_option() -> Remark {
    Remark::later(
        "it belongs to GUE and GRE tunnels, which come in a later release; IP in IP has no such \
         thing",
        "leave it out",
    )
}

fn unknown_tunnel(kind: &str) -> Becomes {
    let why =
        format!("IPVS has no tunnel `{}`; the real server is written as a comment", visible(kind));
    Becomes::Comment(OTHER_TUNNEL, Remark::unknown(why, PREPARE))
}

fn direct() -> Becomes {
    Becomes::Comment(
        "direct routing; see the report",
        Remark::later(
            "direct routing (DR) comes in a later release; the real server is written as a comment",
            PREPARE,
        ),
    )
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
