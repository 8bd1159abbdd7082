//! The differences that are meant, each with its reason. docs/ipvs-differences.md shows them.

use crate::compare::Difference;

/// Differences of one reason.
pub(crate) struct Listed {
    /// What is different, for people.
    pub(crate) what: &'static str,
    /// What Adit does.
    pub(crate) adit: &'static str,
    /// What IPVS does.
    pub(crate) ipvs: &'static str,
    /// Why Adit does it so.
    pub(crate) why: &'static str,
    /// Cases in which it shows, each of them; `*` stands for any words.
    cases: &'static [&'static str],
    /// Fields in which it shows, each of them.
    fields: &'static [&'static str],
    /// Values it may have, of Adit and of IPVS.
    values: fn(&str, &str) -> bool,
}

const ANY: fn(&str, &str) -> bool = |_, _| true;
/// What the one forwards and the other does not, or answers.
const PACKETS: &[&str] = &["forwarded packets", "delivered"];

impl Listed {
    /// Whether the difference is one of these.
    pub(crate) fn has(&self, difference: &Difference) -> bool {
        self.cases.iter().any(|pattern| is_like(pattern, &difference.case))
            && self.fields.contains(&difference.field.as_str())
            && (self.values)(&difference.adit, &difference.ipvs)
    }

    /// What this entry claims and none of these differences shows: cases and fields.
    pub(crate) fn missing(&self, differences: &[Difference]) -> Vec<&'static str> {
        let own: Vec<_> = differences.iter().filter(|one| self.has(one)).collect();
        let cases =
            self.cases.iter().filter(|case| !own.iter().any(|one| is_like(case, &one.case)));
        let fields = self.fields.iter().filter(|field| !own.iter().any(|one| one.field == **field));
        cases.chain(fields).copied().collect()
    }
}

/// Whether a text is the pattern, whose stars stand for anything.
fn is_like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len()).filter_map(|at| text.get(at..)).any(|text| is_like(rest, text))
        }),
    }
}

/// All of them, in the order of the document.
pub(crate) const TABLE: &[Listed] = &[
    Listed {
        what: "Outer TTL and hop limit",
        adit: "64",
        ipvs: "the inner packet's, after its decrement",
        why: "RFC 2003 §3.1 and RFC 2473 §6.3 give the tunnel a TTL of its own: a client's low TTL \
              does not end inside the tunnel, where its sender would get no answer.",
        cases: &["ipv4 *", "ipv6 *"],
        fields: &["forwarded ttl", "forwarded hop limit"],
        values: |adit, _| adit == "64",
    },
    Listed {
        what: "Outer identification (IPv4)",
        adit: "with DF a cookie, else a counter per real server",
        ipvs: "a counter of the kernel",
        why: "The cookie proves that an ICMP error answers a packet of ours; with DF the field is \
              free (RFC 6864 §4.1).",
        cases: &["ipv4 *"],
        fields: &["forwarded identification"],
        values: ANY,
    },
    Listed {
        what: "Outer ECN of packets marked CE",
        adit: "CE",
        ipvs: "ECT(0)",
        why: "RFC 6040 §4.1 copies all four values; what IPVS does is RFC 3168's, which it \
              replaces.",
        cases: &["ipv4 ecn ce", "ipv4 dscp ef, ecn ce", "ipv6 ecn ce", "ipv6 dscp ef, ecn ce"],
        fields: &["forwarded ecn"],
        values: |adit, ipvs| (adit, ipvs) == ("3", "2"),
    },
    Listed {
        what: "TCP that begins without SYN",
        adit: "goes to the one real server that the hash names",
        ipvs: "is left to the host itself, which answers with a reset (no answer to a reset)",
        why: "The connection may have been placed by another director, or before a crash; the real \
              server resets it when it was not.",
        cases: &[
            "* tcp first ack",
            "* tcp first psh and ack",
            "* tcp first fin and ack",
            "* tcp first rst",
            "* tcp first rst and ack",
            "* tcp first no flags",
        ],
        fields: &["forwarded packets", "answer packets", "delivered"],
        values: ANY,
    },
    Listed {
        what: "SYN with ACK or FIN, without a connection",
        adit: "dropped, `no_flow`",
        ipvs: "makes a connection",
        why: "No client of a VIP sends that; it would take a place in the flow table.",
        cases: &["* tcp first syn and ack", "* tcp first syn and fin"],
        fields: PACKETS,
        values: |adit, _| adit.starts_with("0 ") || adit == "[]",
    },
    Listed {
        what: "TCP header length that contradicts the packet",
        adit: "dropped, `malformed` or `truncated`",
        ipvs: "forwarded",
        why: "The real server could only drop it.",
        cases: &["* tcp broken: offset below the header", "* tcp broken: offset beyond the packet"],
        fields: PACKETS,
        values: |adit, _| adit.starts_with("0 ") || adit == "[]",
    },
    Listed {
        what: "Packets to a VIP that no service is for",
        adit: "dropped, `no_service`",
        ipvs: "answered by the host: reset, port or protocol unreachable",
        why: "The VIP is nobody's address on the director. A scan costs nothing, and is counted.",
        cases: &[
            "* tcp to a port without service",
            "* udp to a port without service",
            "* sctp to a vip",
            "* gre to a vip",
            "* an unassigned protocol to a vip",
        ],
        fields: &["answer packets"],
        values: |adit, _| adit.starts_with("0 "),
    },
    Listed {
        what: "Sources that are no client's: 240.0.0.0/4",
        adit: "dropped, `bad_source`",
        ipvs: "forwarded",
        why: "The block is reserved (RFC 1112 §4); hardly any network would carry the answers.",
        cases: &["ipv4 from a reserved address"],
        fields: PACKETS,
        values: |adit, _| adit.starts_with("0 ") || adit == "[]",
    },
    Listed {
        what: "Sources that are no client's: unspecified, link-local, IPv4-mapped, the VIP itself",
        adit: "dropped (`bad_source`, `malformed`), or by the kernel's forwarding on the way",
        ipvs: "forwarded",
        why: "RFC 4291 §2.5.2 and §2.5.6 forbid to forward the first two, RFC 4942 §2.2 warns of the \
              third; an answer to the VIP would go in a circle.",
        cases: &[
            "ipv6 from an unspecified address",
            "ipv6 from a link-local address",
            "ipv6 from a mapped address",
            "ipv6 from the vip itself",
        ],
        fields: PACKETS,
        values: |adit, _| adit.starts_with("0 ") || adit == "[]",
    },
    Listed {
        what: "Record route and timestamp options",
        adit: "in route capture the kernel writes the director's address",
        ipvs: "the VIP",
        why: "There the packet is routed on, not received by the host. What else is in the options \
              arrives as it was sent.",
        cases: &[
            "ipv4 record route, empty",
            "ipv4 record route, one slot left",
            "ipv4 timestamps only",
            "ipv4 timestamps with addresses",
        ],
        fields: &["forwarded inner options"],
        values: ANY,
    },
    Listed {
        what: "Fragments",
        adit: "each is wrapped as it came",
        ipvs: "put together, then cut anew outside the tunnel",
        why: "A middlebox does not change what it forwards, and the path to the real server sees no \
              outer fragments that the client did not send. What is delivered is the same, which is \
              compared.",
        cases: &[
            "ipv4 fragments",
            "ipv4 fragments, *",
            "ipv4 fragments that just fit",
            "ipv4 fragments that do not fit",
            "ipv4 fragments of 8 bytes",
            "ipv4 fragments with df",
            "ipv4 fragments with router alert",
            "ipv4 tcp syn in two fragments",
            "ipv6 atomic fragment",
            "ipv6 fragments",
            "ipv6 fragments, *",
            "ipv6 fragments that just fit",
            "ipv6 fragments of 40 bytes",
        ],
        fields: &["forwarded pieces"],
        values: ANY,
    },
    Listed {
        what: "Fragments of which others are missing",
        adit: "forwarded once the first is there",
        ipvs: "kept until all are there",
        why: "The real server puts them together, and times them out.",
        cases: &[
            "ipv4 first fragment alone",
            "ipv4 fragments without the last",
            "ipv6 first fragment alone",
        ],
        fields: &["forwarded packets"],
        values: |_, ipvs| ipvs.starts_with("0 "),
    },
    Listed {
        what: "Fragments that may not be cut and do not fit",
        adit: "each that is too long is answered; one that fits goes on",
        ipvs: "the whole is answered once",
        why: "Each fragment is a packet of its own. The answer says the same MTU.",
        cases: &["ipv4 fragments with df that do not fit", "ipv6 fragments that do not fit"],
        fields: &[
            "forwarded packets",
            "answer packets",
            "answer quoted length",
            "answer quoted mf",
        ],
        values: ANY,
    },
    Listed {
        what: "Fragments whose TTL has run out",
        adit: "the answer quotes a fragment; in IPv6 each gets one",
        ipvs: "one answer, about the whole",
        why: "As above.",
        cases: &["ipv4 fragments with ttl 1", "ipv6 fragments with hop limit 1"],
        fields: &["answer packets", "answer quoted length", "answer quoted mf"],
        values: ANY,
    },
    Listed {
        what: "A TCP header cut over several fragments",
        adit: "dropped, `tiny_fragment`",
        ipvs: "put together and forwarded",
        why: "RFC 1858 and RFC 7112: filters are passed by with such fragments, and no stack sends \
              them.",
        cases: &["ipv4 tcp syn in fragments of 8 bytes"],
        fields: PACKETS,
        values: |adit, _| adit.starts_with("0 ") || adit == "[]",
    },
    Listed {
        what: "IPv6 over a path of less than 1320 bytes",
        adit: "outer fragments; packets above 1280 bytes are answered with an MTU of 1280",
        ipvs: "everything is dropped, without an answer",
        why: "RFC 2473 §7.1. To clients of IPVS the VIP is gone.",
        cases: &["ipv6 udp, packet of * by the narrow path"],
        fields: &["forwarded packets", "answer packets", "delivered"],
        values: |_, ipvs| ipvs.starts_with("0 ") || ipvs == "[]",
    },
    Listed {
        what: "Eight and more IPv6 extension headers",
        adit: "dropped, `malformed`",
        ipvs: "forwarded",
        why: "The walk is bounded; RFC 8200 §4.1 has each header once, destination options twice.",
        cases: &["ipv6 nine destination options"],
        fields: PACKETS,
        values: |adit, _| adit.starts_with("0 ") || adit == "[]",
    },
    Listed {
        what: "ICMP parameter problem about a flow (IPv4)",
        adit: "goes to the flow's real server",
        ipvs: "dropped",
        why: "RFC 1122 §3.2.2.5: the transport has to be told.",
        cases: &["ipv4 parameter problem about a * flow"],
        fields: PACKETS,
        values: ANY,
    },
    Listed {
        what: "ICMP source quench about a flow",
        adit: "dropped, `icmp_unsupported`",
        ipvs: "forwarded",
        why: "RFC 6633: hosts ignore it, since it is a means to slow others down.",
        cases: &["ipv4 source quench about a * flow"],
        fields: PACKETS,
        values: ANY,
    },
    Listed {
        what: "ICMP errors that quote less than 8 bytes behind the IP header",
        adit: "dropped, `truncated`",
        ipvs: "forwarded, when the ports are there",
        why: "RFC 792 and RFC 4443 quote 8 bytes at least; without a sequence number the real \
              server's TCP does not believe it.",
        cases: &["* error about a * flow, quoting 4 bytes of it"],
        fields: PACKETS,
        values: ANY,
    },
    Listed {
        what: "ICMPv6 errors with a wrong checksum",
        adit: "dropped, `bad_checksum`",
        ipvs: "forwarded",
        why: "The real server drops it; IPVS checks it for IPv4 only.",
        cases: &["ipv6 error about a * flow, with a wrong checksum"],
        fields: PACKETS,
        values: ANY,
    },
    Listed {
        what: "ICMP errors to another address than the quoted sender's",
        adit: "dropped, `icmp_no_flow`",
        ipvs: "forwarded",
        why: "An error goes to the sender of what it quotes (RFC 792, RFC 4443 §2.2).",
        cases: &["* error to another vip than that of the flow"],
        fields: PACKETS,
        values: ANY,
    },
    Listed {
        what: "TTL and hop limit of echo replies and of ICMP errors that Adit writes",
        adit: "63",
        ipvs: "64",
        why: "The host routes them from the TAP to the client.",
        cases: &["* echo*", "* with df*", "ipv6 udp, packet of *", "* a segment that does not fit"],
        fields: &["answer ttl", "answer hop limit"],
        values: |adit, ipvs| (adit, ipvs) == ("63", "64"),
    },
    Listed {
        what: "DF and identification of answers (IPv4)",
        adit: "DF, identification 0",
        ipvs: "no DF, a counter",
        why: "They are short; with DF no number has to be kept (RFC 6864 §4.1).",
        cases: &["ipv4 echo*", "ipv4 * with df*", "ipv4 * a segment that does not fit"],
        fields: &["answer df", "answer identification"],
        values: |adit, _| adit == "1" || adit == "0x0000",
    },
    Listed {
        what: "Identification of answers that the kernel writes on both sides (IPv4)",
        adit: "a counter",
        ipvs: "another",
        why: "Two kernels count differently.",
        cases: &["ipv4 ttl *", "ipv4 * with ttl 1", "ipv4 broken: an option *"],
        fields: &["answer identification"],
        values: ANY,
    },
    Listed {
        what: "Flow label of answers",
        adit: "0 in Adit's own, the kernel's choice in the kernel's",
        ipvs: "the kernel's choice",
        why: "One packet has no flow to keep together (RFC 6437 §2).",
        cases: &[
            "ipv6 echo*",
            "ipv6 udp, packet of *",
            "ipv6 hop limit *",
            "ipv6 hop-by-hop unknown, answer",
            "ipv6 * a segment that does not fit",
        ],
        fields: &["answer flow label"],
        values: ANY,
    },
    Listed {
        what: "DSCP of packet-too-big (IPv6)",
        adit: "CS6",
        ipvs: "0",
        why: "Errors are internetwork control (RFC 1812 §4.3.2.5), in IPv6 as in IPv4, where both \
              say CS6.",
        cases: &["ipv6 udp, packet of *", "ipv6 * a segment that does not fit"],
        fields: &["answer dscp"],
        values: |adit, ipvs| (adit, ipvs) == ("48", "0"),
    },
    Listed {
        what: "ECN of echo replies",
        adit: "not-ECT",
        ipvs: "the request's",
        why: "Who sends a reply does not react to marks, so must not say that it does (RFC 3168 §5).",
        cases: &["* echo, dscp ef, ecn ect(0)"],
        fields: &["answer ecn"],
        values: |adit, ipvs| (adit, ipvs) == ("0", "2"),
    },
    Listed {
        what: "Source of time exceeded and parameter problem in route capture",
        adit: "the director's address",
        ipvs: "the VIP",
        why: "The kernel writes them when it routes the packet to the TAP. In bridge and manual \
              capture Adit writes them, from the VIP.",
        cases: &[
            "ipv4 ttl *",
            "ipv4 * with ttl 1",
            "ipv6 hop limit *",
            "ipv4 broken: an option *",
            "ipv6 hop-by-hop unknown, answer",
        ],
        fields: &["answer source"],
        values: ANY,
    },
    Listed {
        what: "Echo to a VIP with TTL 1",
        adit: "in route capture time exceeded",
        ipvs: "echo reply",
        why: "The VIP is one hop behind the director, and traceroute shows it.",
        cases: &["ipv4 echo with ttl 1"],
        fields: &[
            "answer icmp type",
            "answer icmp rest",
            "answer icmp body",
            "answer dscp",
            "answer length",
            "answer quoted bytes",
            "answer quoted destination",
            "answer quoted df",
            "answer quoted dscp",
            "answer quoted ecn",
            "answer quoted header checksum",
            "answer quoted identification",
            "answer quoted length",
            "answer quoted mf",
            "answer quoted offset",
            "answer quoted options",
            "answer quoted payload",
            "answer quoted protocol",
            "answer quoted reserved flag",
            "answer quoted source",
            "answer quoted ttl",
            "answer quoted version",
        ],
        values: ANY,
    },
    Listed {
        what: "Options of an echo request",
        adit: "do not come back",
        ipvs: "come back, filled in",
        why: "Nothing a client needs is in them, and reflected routes send packets under a false \
              name.",
        cases: &["ipv4 echo with record route"],
        fields: &["answer options", "answer length"],
        values: ANY,
    },
    Listed {
        what: "Echo requests in fragments, timestamp requests",
        adit: "dropped, `icmp_unsupported`",
        ipvs: "answered",
        why: "Adit reassembles nothing, and RFC 1122 §3.2.2.8 lets hosts be silent about the time.",
        cases: &["ipv4 echo in fragments", "ipv6 echo in fragments", "ipv4 timestamp request"],
        fields: &["answer packets"],
        values: |adit, _| adit.starts_with("0 "),
    },
];

#[test]
fn patterns_match_what_they_say() {
    assert!(is_like("* tcp first ack", "ipv4 tcp first ack"));
    assert!(!is_like("* tcp first ack", "ipv4 tcp first ack and more"));
    assert!(is_like("* with df*", "ipv4 udp, packet of 1481 with df"));
    assert!(!is_like("ipv4", "ipv4 df"));
}
