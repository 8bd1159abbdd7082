//! What is said of things that IPVS and keepalived share.

use super::address::MaskError;
use super::report::{Kind, Remark, visible};
use super::schedulers;

/// Beside an entry that is written as a comment.
pub(super) const DIRECT: &str = "direct routing; see the report";
pub(super) const MASQUERADED: &str = "masqueraded; see the report";
pub(super) const OTHER_TUNNEL: &str = "another tunnel than IP in IP; see the report";

pub(super) fn direct() -> Remark {
    Remark::left_out(
        "direct routing (DR) is not there yet: packets go through IP-in-IP tunnels only; the real \
         server is written as a comment",
        "prepare it with `adit-realserver apply --vip …` and take the comment signs away",
    )
}

pub(super) fn masqueraded() -> Remark {
    Remark::left_out(
        "masquerading (NAT) has no equal: the real server itself must own the VIP and answer the \
         client; it is written as a comment",
        "prepare it with `adit-realserver apply --vip …` and take the comment signs away, or leave \
         this service with IPVS",
    )
}

pub(super) fn translated_port() -> Remark {
    Remark::left_out(
        "masquerading to another port has no equal: ports are never changed",
        "let the real server listen on the VIP's port, or leave this service with IPVS",
    )
}

pub(super) fn same_port() -> Remark {
    Remark::changed(
        "without masquerading the port cannot differ from the VIP's, and IPVS takes the VIP's too",
        "let the real server listen on the VIP's port",
    )
}

pub(super) fn other_tunnel(kind: &str) -> Remark {
    Remark::left_out(
        format!(
            "`{}` tunnels are not there yet, IP in IP only; the real server is written as a comment",
            visible(kind)
        ),
        "prepare it for IP in IP with `adit-realserver apply --vip …` and take the comment signs \
         away",
    )
}

pub(super) fn encapsulation_option() -> Remark {
    Remark::left_out(
        "it belongs to GUE and GRE tunnels; IP in IP has no such thing",
        "leave it out",
    )
}

pub(super) fn firewall_mark() -> Remark {
    Remark::left_out(
        "services by firewall mark have no equal: a packet's address and port decide",
        "write a [[service]] for each VIP and port that the firewall marks (see `nft list ruleset`)",
    )
}

pub(super) fn sctp() -> Remark {
    Remark::left_out("SCTP is not balanced here, only TCP and UDP", "leave this service with IPVS")
}

pub(super) fn one_packet() -> Remark {
    Remark::left_out(
        "one-packet scheduling has no equal: datagrams from one client's port stay with one real \
         server",
        "nothing, or udp = \"1s\" in the service's timeouts to let flows end soon",
    )
}

pub(super) fn engine(name: &str) -> Remark {
    let name = visible(name);
    Remark::left_out(
        format!(
            "there is no persistence engine `{name}`: persistence goes by the client's address"
        ),
        "leave services that need it with IPVS",
    )
}

pub(super) fn threshold() -> Remark {
    Remark::left_out(
        "connections of a real server are not limited here",
        "limit them on the real server, such as by max_connections",
    )
}

pub(super) fn no_scheduler(name: &str) -> Remark {
    let name = visible(name);
    Remark::unknown(
        format!("IPVS has no scheduler `{name}`; its default, {}, is taken", schedulers::DEFAULT),
        "choose one in the configuration",
    )
}

pub(super) fn not_a_number() -> Remark {
    Remark::unknown("a number is expected here; the default is taken", "look at the line")
}

pub(super) fn mask_without_persistence() -> Remark {
    Remark::left_out("a mask without persistence decides nothing", "leave it out")
}

pub(super) fn bad_mask(error: MaskError, full: u8) -> Remark {
    let instead = "choose a prefix length in the configuration: ipv4_prefix or ipv6_prefix";
    match error {
        MaskError::NotAMask => Remark::unknown(
            format!("it is no mask of the VIP's family; every client by itself (/{full}) is taken"),
            instead,
        ),
        MaskError::NotContiguous => Remark::new(
            Kind::Changed,
            format!("masks with gaps have no equal; every client by itself (/{full}) is taken"),
            instead,
        ),
        MaskError::Empty => Remark::new(
            Kind::Changed,
            format!(
                "an empty mask, all clients as one, has no equal; every client by itself \
                 (/{full}) is taken"
            ),
            "to send everybody to one server, name that one alone",
        ),
    }
}
