//! `virtual_server` and its `real_server`s.

use super::super::address::{ANY_PORT, number};
use super::super::choices::{self, Said};
use super::super::draft::{MAX_REAL_ENTRIES, Persistence, Place, Real, Service};
use super::super::forwarding::{Becomes, Checksum, Method, becomes};
use super::super::ledger::{Ledger, Word, shown};
use super::super::remarks::{engine, firewall_mark, not_a_number, same_port, sctp};
use super::super::report::{Remark, visible};
use super::super::thresholds::{self, Thresholds};
use super::check::{self, Checked};
use super::group::Group;
use super::options::{Fate, Meaning, REAL_SERVER, VIRTUAL_SERVER, fate};
use super::tree::Statement;
use super::{extra_words, report, single};
use crate::control::config::{MAX_SERVICES, Protocol, RealTunnel, VipPrefix};
use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

/// The weight of a server that names none.
const DEFAULT_WEIGHT: u32 = 1;

/// Which option of several counts: the last one, and the others are said to be in vain.
pub(super) struct Last<'s, 't>(pub(super) Option<&'s Statement<'t>>);

impl<'s, 't> Last<'s, 't> {
    pub(super) fn set(&mut self, statement: &'s Statement<'t>, ledger: &mut Ledger) {
        if let Some(before) = self.0.replace(statement) {
            let why = format!("line {} says it again, and the last one counts", statement.line());
            report(before, Remark::left_out(why, "take it away"), ledger);
        }
    }
}

/// What a `virtual_server` says.
struct Options<'s, 't> {
    scheduler: Last<'s, 't>,
    method: Last<'s, 't>,
    timeout: Last<'s, 't>,
    mask: Last<'s, 't>,
    protocol: Last<'s, 't>,
    name: Last<'s, 't>,
    one_packet: Last<'s, 't>,
    flags: Vec<&'s Statement<'t>>,
    checks: check::Said<'s, 't>,
    /// With the weight in force where they stand.
    reals: Vec<(&'s Statement<'t>, u32)>,
}

/// Reads a virtual server into services, one for each address or prefix.
pub(super) fn read(
    statement: &Statement<'_>,
    groups: &HashMap<String, Group>,
    services: &mut Vec<Service>,
    ledger: &mut Ledger,
) {
    let addresses = match addresses(statement, groups) {
        Ok(addresses) => addresses,
        Err(remark) => return report(statement, remark, ledger),
    };
    let protocol = statement.options().iter().rfind(|option| option.name() == "protocol");
    if protocol.and_then(|p| p.words.get(1)).is_some_and(|w| w.text.eq_ignore_ascii_case("sctp")) {
        return report(statement, sctp(), ledger);
    }
    let reals = statement.options().iter().filter(|o| o.name() == "real_server").count();
    if let Some(why) = no_room(services, addresses.len(), reals) {
        return report(statement, Remark::left_out(why, "spread it over directors"), ledger);
    }
    ledger.used(&statement.words);
    let options = options(statement, ledger);
    let protocol = self::protocol(options.protocol.0, statement, ledger);
    // keepalived's default.
    let method = method(options.method.0, ledger).unwrap_or(Method::Masquerade);
    let name = options.name.0.and_then(|option| single(option, ledger));
    let all_v4 = addresses.iter().all(|(vip, _)| vip.is_ipv4());
    let persistence = persistence(&options, all_v4, ledger);
    let place = place(statement);
    let scheduler = choices::scheduler(
        options.scheduler.0.and_then(|option| said(option, ledger)).as_ref(),
        &options.flags.iter().map(|flag| flag_said(flag, ledger)).collect::<Vec<_>>(),
        ledger,
    );
    let one_packet = options.one_packet.0.map(|option| flag_said(option, ledger));
    let one_packet =
        choices::one_packet(one_packet.as_ref(), protocol, persistence.is_some(), ledger);
    let ports: Vec<u16> = addresses.iter().map(|(_, port)| *port).collect();
    let (mut reals, mut checked) = (Vec::new(), Vec::new());
    for (option, weight) in &options.reals {
        reals.extend(real(option, *weight, &method, &ports, &mut checked, ledger));
    }
    let check = check::template(&options.checks, &checked, ledger);
    let addresses = separated(addresses, &reals, persistence.is_some(), &place, ledger);
    if addresses.len() > 1
        && let Some(name) = &name
    {
        let remark = Remark::changed(
            "more than one service is made of it, and they cannot share a name",
            "rename them in the configuration",
        );
        ledger.report([*name], remark);
    }
    let name = name.filter(|_| addresses.len() == 1).map(|word| word.text.to_string());
    for (vip, port) in addresses {
        let prefix = |persistence: Persistence| {
            let same = vip.is_ipv4() == all_v4;
            let prefix =
                if same { persistence.prefix } else { choices::full_prefix(vip.is_ipv4()) };
            Persistence { prefix, ..persistence }
        };
        let port = (port != ANY_PORT).then_some(port);
        let check = check.and_then(|template| {
            let check = template.of_port(port);
            if check.is_none() {
                let remark = Remark::left_out(
                    format!("{vip} has every port, and nothing says which one to check"),
                    "give the service a `check` with a `port`",
                );
                ledger.note(Some(place.line), None, place.words.clone(), remark);
            }
            check
        });
        services.push(Service {
            place: place.clone(),
            name: name.clone(),
            vip,
            port,
            protocol,
            scheduler: scheduler.clone(),
            one_packet,
            persistence: persistence.map(prefix),
            check,
            reals: reals.clone(),
        });
    }
}

/// The addresses of a group as services take them: a prefix as one service, unless its addresses would
/// then share what in IPVS each has of its own.
fn separated(
    addresses: Vec<(VipPrefix, u16)>,
    reals: &[Real],
    is_persistent: bool,
    place: &Place,
    ledger: &mut Ledger,
) -> Vec<(VipPrefix, u16)> {
    let bounded = reals.iter().any(|real| real.thresholds != Thresholds::default());
    if bounded {
        let hosts = |(vip, port): (VipPrefix, u16)| {
            vip.addresses().map(move |one| (VipPrefix::host(one), port))
        };
        return addresses.into_iter().flat_map(hosts).collect();
    }
    if is_persistent && addresses.iter().any(|(vip, _)| vip.host_bits() > 0) {
        let remark = Remark::changed(
            "addresses that are a whole prefix become one service, which remembers a client for all \
             of them; in IPVS each address remembers its own",
            "nothing, or a service for each address",
        );
        ledger.note(Some(place.line), None, place.words.clone(), remark);
    }
    addresses
}

/// Why so many more services, of so many real servers each, do not fit. Groups multiply both, so
/// that this is asked before they are made.
fn no_room(services: &[Service], more: usize, reals: usize) -> Option<String> {
    if services.len() + more > MAX_SERVICES {
        return Some(format!("a director has at most {MAX_SERVICES} services"));
    }
    let entries: usize = services.iter().map(|service| service.reals.len()).sum();
    (entries + more * reals > MAX_REAL_ENTRIES)
        .then(|| format!("at most {MAX_REAL_ENTRIES} entries of real servers are imported"))
}

fn place(statement: &Statement<'_>) -> Place {
    Place { line: statement.line(), words: shown(&statement.words.iter().collect::<Vec<_>>()) }
}

/// The addresses that a virtual server's head names.
fn addresses(
    statement: &Statement<'_>,
    groups: &HashMap<String, Group>,
) -> Result<Vec<(VipPrefix, u16)>, Remark> {
    let words: Vec<&str> = statement.words.iter().map(|word| word.text.as_ref()).collect();
    match words[1..] {
        ["fwmark", ..] => Err(firewall_mark()),
        ["group", name] => {
            let group = groups.get(name).ok_or_else(|| {
                Remark::left_out(
                    format!("there is no virtual_server_group `{}`", visible(name)),
                    "define it, or import the file that does",
                )
            })?;
            if group.addresses.is_empty() {
                return Err(Remark::left_out(
                    format!("its group in line {} has no address that was imported", group.line),
                    "as said there",
                ));
            }
            Ok(group.addresses.clone())
        }
        [address] => Ok(vec![(vip(address)?.into(), ANY_PORT)]),
        [address, port] => {
            let port = number(port).ok_or_else(|| {
                Remark::unknown(
                    format!("`{}` is not the number of a port", visible(port)),
                    "names are not looked up: write the number",
                )
            })?;
            Ok(vec![(vip(address)?.into(), port)])
        }
        _ => Err(Remark::unknown(
            "it names no service as keepalived.conf(5) says",
            "write: virtual_server 192.0.2.1 80 { … }",
        )),
    }
}

fn vip(text: &str) -> Result<IpAddr, Remark> {
    text.parse().map_err(|_| {
        Remark::unknown(
            format!("`{}` is not an address", visible(text)),
            "names are not looked up: write the address",
        )
    })
}

/// Sorts the options out, and reports what is not taken over.
fn options<'s, 't>(statement: &'s Statement<'t>, ledger: &mut Ledger) -> Options<'s, 't> {
    let none = || Last(None);
    let mut options = Options {
        scheduler: none(),
        method: none(),
        timeout: none(),
        mask: none(),
        protocol: none(),
        name: none(),
        one_packet: none(),
        flags: Vec::new(),
        checks: check::Said::default(),
        reals: Vec::new(),
    };
    let mut weight = DEFAULT_WEIGHT;
    let mut weight_option = none();
    for option in statement.options() {
        let Some(meaning) = meaning(option, VIRTUAL_SERVER, ledger) else { continue };
        match meaning {
            Meaning::Scheduler => options.scheduler.set(option, ledger),
            Meaning::SchedulerFlag => options.flags.push(option),
            Meaning::Method => options.method.set(option, ledger),
            Meaning::PersistenceTimeout => options.timeout.set(option, ledger),
            Meaning::PersistenceMask => options.mask.set(option, ledger),
            Meaning::Protocol => options.protocol.set(option, ledger),
            Meaning::Name => options.name.set(option, ledger),
            Meaning::PersistenceEngine => {
                let name = option.words.get(1).map_or("", |word| &word.text);
                report(option, engine(name), ledger);
            }
            Meaning::OnePacket => options.one_packet.set(option, ledger),
            Meaning::Weight => {
                weight_option.set(option, ledger);
                weight = number_of(option, ledger).unwrap_or(DEFAULT_WEIGHT);
            }
            Meaning::RealServer => options.reals.push((option, weight)),
            Meaning::Check(check) => options.checks.add(check, option, ledger),
            // The table of virtual servers has none.
            Meaning::Upper | Meaning::Lower | Meaning::TcpCheck => {
                report(option, no_such_option(), ledger)
            }
        }
    }
    options
}

/// What an option means; `None` when it was reported.
pub(super) fn meaning(
    option: &Statement<'_>,
    table: &'static [(&'static str, Fate)],
    ledger: &mut Ledger,
) -> Option<Meaning> {
    match fate(table, option.name()) {
        Some(Fate::Read(block @ (Meaning::RealServer | Meaning::TcpCheck))) => Some(block),
        Some(Fate::Read(meaning)) => {
            if option.block.is_none() {
                return Some(meaning);
            }
            let remark = Remark::unknown("this option has no block", "take the braces away");
            report(option, remark, ledger);
            None
        }
        Some(Fate::Said(reason)) => {
            report(option, reason.remark(), ledger);
            None
        }
        None => {
            report(option, no_such_option(), ledger);
            None
        }
    }
}

fn no_such_option() -> Remark {
    Remark::unknown(
        "keepalived.conf(5) has no such option here",
        "look at the line; keepalived ignores it too",
    )
}

/// An option with one value, or `None` with its report.
fn said<'s, 't>(option: &'s Statement<'t>, ledger: &mut Ledger) -> Option<Said<'s, 't>> {
    let value = single(option, ledger)?;
    let words = option.words.iter().take(2).collect();
    Some(Said { words, value: Some(Cow::Borrowed(value.text.as_ref())) })
}

/// A flag, which is its own value.
fn flag_said<'s, 't>(option: &'s Statement<'t>, ledger: &mut Ledger) -> Said<'s, 't> {
    extra_words(&option.words[1..], ledger);
    let words = option.words.iter().take(1).collect();
    Said { words, value: Some(Cow::Borrowed(option.name())) }
}

fn number_of(option: &Statement<'_>, ledger: &mut Ledger) -> Option<u32> {
    let word = single(option, ledger)?;
    match number(&word.text) {
        Some(number) if number <= i32::MAX.unsigned_abs() => Some(number),
        _ => {
            ledger.report([word], not_a_number());
            None
        }
    }
}

/// keepalived takes UDP where nothing is said.
fn protocol(
    option: Option<&Statement<'_>>,
    statement: &Statement<'_>,
    ledger: &mut Ledger,
) -> Protocol {
    let word = option.and_then(|option| single(option, ledger));
    match word {
        Some(word) if word.text.eq_ignore_ascii_case("tcp") => Protocol::Tcp,
        Some(word) if word.text.eq_ignore_ascii_case("udp") => Protocol::Udp,
        Some(word) => {
            ledger.report(
                [word],
                Remark::unknown(
                    "it is no protocol of keepalived.conf(5); UDP is taken, as keepalived does",
                    "write TCP or UDP",
                ),
            );
            Protocol::Udp
        }
        None => {
            let place = place(statement);
            ledger.note(
                Some(place.line),
                None,
                place.words,
                Remark::changed(
                    "it names no protocol, for which keepalived takes UDP",
                    "change `protocol` in the configuration if TCP was meant",
                ),
            );
            Protocol::Udp
        }
    }
}

fn persistence(
    options: &Options<'_, '_>,
    is_ipv4: bool,
    ledger: &mut Ledger,
) -> Option<Persistence> {
    let mask = options.mask.0.and_then(|option| said(option, ledger));
    let timeout = match options.timeout.0 {
        Some(option) => {
            extra_words(option.words.get(2..).unwrap_or_default(), ledger);
            let value = option.words.get(1).map(|word| Cow::Borrowed(word.text.as_ref()));
            Some(Said { words: option.words.iter().take(2).collect(), value })
        }
        // A mask alone makes a service persistent.
        None => mask.as_ref().map(|_| Said { words: Vec::new(), value: None }),
    };
    choices::persistence(timeout.as_ref(), mask.as_ref(), is_ipv4, ledger)
}

/// `NAT`, `DR` or `TUN [type ipip|gue port N|gre] [nocsum|csum|remcsum]`.
fn method(option: Option<&Statement<'_>>, ledger: &mut Ledger) -> Option<Method> {
    let option = option?;
    let (head, rest) = option.words.split_at(option.words.len().min(2));
    ledger.used(head);
    let method = match head.get(1).map(|word| word.text.as_ref()) {
        Some("NAT") => Method::Masquerade,
        Some("DR") => Method::Direct,
        Some("TUN") => return Some(tunnel(rest, ledger)),
        _ => {
            ledger.report(
                &option.words,
                Remark::unknown("it is no method of keepalived.conf(5)", "write TUN"),
            );
            return None;
        }
    };
    extra_words(rest, ledger);
    Some(method)
}

fn tunnel(words: &[Word<'_>], ledger: &mut Ledger) -> Method {
    let mut method = Method::IpInIp;
    // They may stand in front of the tunnel that they belong to.
    let (mut port, mut checksum) = (None, None);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.text.as_ref() {
            "type" => {
                ledger.used([word]);
                let kind = rest.next();
                ledger.used(kind);
                method = Method::tunnel(kind.map(|kind| kind.text.as_ref()).unwrap_or_default());
            }
            "port" if port.is_none() => port = Some((word, rest.next())),
            name => match Checksum::named(name) {
                Some(asked) if checksum.is_none() => checksum = Some((word, asked)),
                Some(_) | None => extra_words([word], ledger),
            },
        }
    }
    let mut account = |words: Vec<&Word<'_>>, taken| match taken {
        Ok(()) => ledger.used(words),
        Err(remark) => ledger.report(words, remark),
    };
    if let Some((word, value)) = port {
        let text = value.map_or("", |value| &value.text);
        account([word].into_iter().chain(value).collect(), method.take_port(text));
    }
    if let Some((word, asked)) = checksum {
        account(vec![word], method.take_checksum(asked));
    }
    method
}

/// A real server, or `None` with its report. What it says of checks goes to `checked`.
fn real<'s, 't>(
    option: &'s Statement<'t>,
    weight: u32,
    inherited: &Method,
    ports: &[u16],
    checked: &mut Vec<Checked<'s, 't>>,
    ledger: &mut Ledger,
) -> Option<Real> {
    let (address, port) = match head(option) {
        Ok(head) => head,
        Err(remark) => {
            report(option, remark, ledger);
            return None;
        }
    };
    ledger.used(&option.words);
    let (own, said, blocks) = real_options(option, ledger);
    let method = own.method.as_ref().unwrap_or(inherited);
    let other_port = port != ANY_PORT && ports.iter().any(|vport| *vport != port);
    let mut say = |remark| ledger.report(&option.words, remark);
    let becomes = becomes(method, address, other_port);
    let is_imported = !matches!(becomes, Becomes::Nothing(_));
    checked.push(Checked { statement: option, port, is_imported, said, blocks });
    let (tunnel, commented) = match becomes {
        Becomes::RealServer(tunnel, remark) => {
            remark.map(&mut say);
            (tunnel, None)
        }
        Becomes::Comment(comment, remark) => {
            say(remark);
            (RealTunnel::Ipip, Some(comment))
        }
        Becomes::Nothing(remark) => {
            say(remark);
            return None;
        }
    };
    if other_port {
        say(same_port());
    }
    let (weight, thresholds) = (own.weight.unwrap_or(weight), own.thresholds);
    Some(Real { place: place(option), address, weight, thresholds, tunnel, commented })
}

fn head(option: &Statement<'_>) -> Result<(IpAddr, u16), Remark> {
    let words: Vec<&str> = option.words.iter().map(|word| word.text.as_ref()).collect();
    let (address, port) = match words[1..] {
        [address] => (address, Some(ANY_PORT)),
        [address, port] => (address, number(port)),
        _ => ("", None),
    };
    match (address.parse(), port) {
        (Ok(address), Some(port)) => Ok((address, port)),
        _ => Err(Remark::unknown(
            "it names no real server by address and port, both in numbers",
            "names are not looked up: write real_server 10.0.0.1 80",
        )),
    }
}

/// What a `real_server` says itself.
struct RealOptions {
    method: Option<Method>,
    weight: Option<u32>,
    thresholds: Thresholds,
}

/// Its own options, and what it says of checks: options, and the blocks of those by TCP.
fn real_options<'s, 't>(
    option: &'s Statement<'t>,
    ledger: &mut Ledger,
) -> (RealOptions, check::Said<'s, 't>, Vec<&'s Statement<'t>>) {
    let none = || Last(None);
    let (mut method, mut weight, mut upper, mut lower) = (none(), none(), none(), none());
    let (mut checks, mut blocks) = (check::Said::default(), Vec::new());
    for option in option.options() {
        match meaning(option, REAL_SERVER, ledger) {
            Some(Meaning::Weight) => weight.set(option, ledger),
            Some(Meaning::Method) => method.set(option, ledger),
            Some(Meaning::Upper) => upper.set(option, ledger),
            Some(Meaning::Lower) => lower.set(option, ledger),
            Some(Meaning::Check(check)) => checks.add(check, option, ledger),
            Some(Meaning::TcpCheck) => blocks.push(option),
            Some(_) | None => {}
        }
    }
    let upper = upper.0.and_then(|option| said(option, ledger));
    let lower = lower.0.and_then(|option| said(option, ledger));
    let own = RealOptions {
        method: self::method(method.0, ledger),
        weight: weight.0.and_then(|option| number_of(option, ledger)),
        thresholds: thresholds::read(upper.as_ref(), lower.as_ref(), ledger),
    };
    (own, checks, blocks)
}
