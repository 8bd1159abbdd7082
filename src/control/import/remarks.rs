//! What is said of things that IPVS and keepalived share.

use super::address::MaskError;
use super::report::{Kind, Remark, visible};
use super::schedulers;

pub(super) fn same_port() -> Remark {
    Remark::changed(
        "without masquerading the port cannot differ from the VIP's, and IPVS takes the VIP's too",
        "let the real server listen on the VIP's port",
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

pub(super) fn one_packet_of_tcp() -> Remark {
    Remark::left_out("one-packet scheduling is for UDP alone, in IPVS too", "leave it out")
}

pub(super) fn one_packet_and_persistence() -> Remark {
    Remark::left_out(
        "one-packet scheduling and persistence exclude each other here: clients are remembered by \
         their flows; the persistence is taken",
        "nothing, or one_packet = true with scheduler = \"sh\" in the place of the persistence",
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
