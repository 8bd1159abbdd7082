//! Two outcomes of one case, field by field.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::delivery::delivered;
use crate::dissect::{Fields, frame};
use crate::site::Outcome;

/// One difference.
#[derive(Clone, Debug)]
pub(crate) struct Difference {
    pub(crate) case: String,
    /// Where: `forwarded ttl`, `answer quoted bytes`, `forwarded packets`, `delivered`.
    pub(crate) field: String,
    pub(crate) adit: String,
    pub(crate) ipvs: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: adit {}, ipvs {}", self.case, self.field, self.adit, self.ipvs)
    }
}

/// Fields of the first packet that do not depend on where a datagram is cut.
const WHEREVER_CUT: [&str; 10] = [
    "version",
    "dscp",
    "ecn",
    "df",
    "ttl",
    "hop limit",
    "header checksum",
    "source",
    "destination",
    "trailer",
];

/// All differences of a case.
///
/// Datagrams that are cut elsewhere make one difference, `forwarded pieces`: what is in the pieces is
/// told by what is `delivered`, which is compared always.
pub(crate) fn differences(case: &str, adit: &Outcome, ipvs: &Outcome) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut add = |field: String, adit: String, ipvs: String| {
        if adit != ipvs {
            all.push(Difference { case: case.to_owned(), field, adit, ipvs });
        }
    };
    for (what, adit, ipvs) in
        [("forwarded", &adit.forwarded, &ipvs.forwarded), ("answer", &adit.answers, &ipvs.answers)]
    {
        let (adit, ipvs) = (dissected(adit), dissected(ipvs));
        let cuts = (adit.iter().any(is_piece), ipvs.iter().any(is_piece));
        let cut_alike = adit.iter().map(cut).eq(ipvs.iter().map(cut));
        let alike = adit.len() == ipvs.len() && (cuts == (false, false) || cut_alike);
        if !alike {
            let both = !adit.is_empty() && !ipvs.is_empty();
            let pieces = both && (cuts.0 || cuts.1);
            let field = if pieces { "pieces" } else { "packets" };
            add(format!("{what} {field}"), outline(&adit), outline(&ipvs));
            if !pieces {
                continue;
            }
        }
        for (adit, ipvs) in adit.iter().zip(&ipvs).take(if alike { usize::MAX } else { 1 }) {
            let (adit, ipvs) = (by_name(adit), by_name(ipvs));
            let names: BTreeSet<_> = adit.keys().chain(ipvs.keys()).collect();
            for name in names {
                if !alike && !WHEREVER_CUT.contains(name) {
                    continue;
                }
                let value = |fields: &BTreeMap<_, &str>| {
                    fields.get(*name).map_or("absent".to_owned(), |value| (*value).to_owned())
                };
                add(format!("{what} {name}"), value(&adit), value(&ipvs));
            }
        }
    }
    let list = |outcome: &Outcome| {
        let all: Vec<String> =
            delivered(&outcome.forwarded).iter().map(|d| d.to_string()).collect();
        format!("[{}]", all.join(", "))
    };
    add("delivered".into(), list(adit), list(ipvs));
    all
}

/// Where a packet begins and ends in its datagram, outside and inside.
fn cut(fields: &Fields) -> Vec<Option<&str>> {
    let fields = by_name(fields);
    let names = ["mf", "offset", "inner mf", "inner offset", "length", "fragment identification"];
    // Whether there is such a header, not what it says.
    let header = |name, value| if name == "fragment identification" { "" } else { value };
    names.map(|name| fields.get(name).map(|value| header(name, *value))).to_vec()
}

fn is_piece(fields: &Fields) -> bool {
    let fields = by_name(fields);
    let says = |name: &str| fields.get(name).is_some_and(|value| *value != "0");
    ["mf", "offset", "inner mf", "inner offset"].into_iter().any(says)
        // A fragment header, whatever it says; or one that a client wrote.
        || fields.contains_key("fragment identification")
        || fields.get("inner next header") == Some(&"44")
}

fn dissected(frames: &[Vec<u8>]) -> Vec<Fields> {
    frames.iter().map(|bytes| frame(bytes)).collect()
}

fn by_name(fields: &Fields) -> BTreeMap<&str, &str> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// How many packets, and what kind of packet each is.
fn outline(packets: &[Fields]) -> String {
    let kinds: Vec<String> = packets
        .iter()
        .map(|fields| {
            let names = by_name(fields);
            let get = |name: &str| names.get(name).copied();
            let protocol = get("protocol").or(get("next header")).unwrap_or("?");
            let length = get("length").unwrap_or("?");
            let piece = if is_piece(fields) { " in pieces" } else { "" };
            match (get("icmp type"), get("icmp code")) {
                (Some(kind), Some(code)) => format!("icmp {kind}/{code} of {length}"),
                _ => format!("protocol {protocol} of {length}{piece}"),
            }
        })
        .collect();
    format!("{} [{}]", packets.len(), kinds.join(", "))
}
