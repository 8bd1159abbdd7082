//! The rules that `ipvsadm -S -n` prints and `ipvsadm -R` reads: each line the arguments of one
//! call (ipvsadm(8)).

mod given;
mod options;

use super::address::{address_and_port, number};
use super::choices::{self, Said};
use super::draft::{Persistence, Place, Real, Service};
use super::forwarding::{Becomes, Method, becomes};
use super::ledger::{Ledger, MAX_WORDS, Word, shown};
use super::remarks::{engine, firewall_mark, not_a_number, same_port, sctp};
use super::report::Remark;
use super::thresholds::{self, Thresholds};
use super::{Found, schedulers};
use crate::control::config::{ConfigErrors, Protocol, RealTunnel};
use given::{Given, Key, key};
use options::{Meaning, Values, option};
use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::Range;

/// The weight of a server that names none.
const DEFAULT_WEIGHT: u32 = 1;

/// The services of the lines above: where in the list, or why they were left out.
type Known = HashMap<Key, Result<usize, usize>>;

pub(super) fn read(text: &str, file: &str, ledger: &mut Ledger) -> Result<Found, ConfigErrors> {
    let mut reader = Reader { found: Found::default(), known: Known::new(), ledger };
    let mut start = 0;
    for (number, line) in text.split('\n').enumerate() {
        reader.line(line, number + 1).map_err(|problem| {
            let Problem { span, message, help } = problem;
            ConfigErrors::one(file, text, start + span.start..start + span.end, message, help)
        })?;
        start += line.len() + 1;
    }
    Ok(reader.found)
}

/// What makes a line no rule, with its place in the line.
struct Problem {
    span: Range<usize>,
    message: String,
    help: String,
}

struct Reader<'l> {
    found: Found,
    known: Known,
    ledger: &'l mut Ledger,
}

impl Reader<'_> {
    fn line(&mut self, line: &str, number: usize) -> Result<(), Problem> {
        let mut words = Vec::new();
        for text in line.split_whitespace() {
            if text.starts_with('#') {
                break;
            }
            let word = self.ledger.word(text, number).ok_or_else(|| Problem {
                span: 0..line.len(),
                message: format!("the file has more than {MAX_WORDS} words"),
                help: "a director cannot hold as many rules".to_owned(),
            })?;
            words.push(word);
        }
        // Lines of a script have the command's name.
        let rule = match words.split_first() {
            Some((first, rest)) if first.is("ipvsadm") => {
                self.ledger.used([first]);
                rest
            }
            _ => &words,
        };
        if rule.is_empty() {
            return Ok(());
        }
        let given = self.options(rule, line)?;
        self.rule(rule, given);
        Ok(())
    }

    /// Tells options and values apart.
    fn options<'w, 't>(
        &mut self,
        rule: &'w [Word<'t>],
        line: &str,
    ) -> Result<Vec<Given<'w, 't>>, Problem> {
        let mut given = Vec::new();
        let mut rest = rule.iter().peekable();
        while let Some(word) = rest.next() {
            let Some((option, values, inline)) = option(&word.text) else {
                if given.is_empty() {
                    return Err(problem(
                        line,
                        word,
                        format!("`{}` is no command of ipvsadm", word.text),
                        "each line is a rule such as: -A -t 192.0.2.1:80 -s wrr",
                    ));
                }
                self.ledger.report(
                    [word],
                    Remark::unknown(
                        "ipvsadm(8) has no such option",
                        "look at the line: the rest of it is imported",
                    ),
                );
                continue;
            };
            let mut given_here = Given { option, words: vec![word], value: inline };
            let wanted = match values {
                _ if inline.is_some() => 0,
                Values::None => 0,
                Values::One | Values::OneOrEnd => 1,
                Values::Maybe => {
                    usize::from(rest.peek().is_some_and(|next| number::<u64>(&next.text).is_some()))
                }
                Values::Three => 3,
            };
            for _ in 0..wanted {
                match rest.next() {
                    Some(value) => {
                        given_here.words.push(value);
                        given_here.value.get_or_insert(&value.text);
                    }
                    None if values == Values::OneOrEnd => {}
                    None => {
                        return Err(problem(
                            line,
                            word,
                            format!("`{}` has no value", word.text),
                            "write it behind the option, as ipvsadm(8) says",
                        ));
                    }
                }
            }
            given.push(given_here);
        }
        Ok(given)
    }

    fn rule(&mut self, rule: &[Word<'_>], given: Vec<Given<'_, '_>>) {
        let command = given.iter().find(|g| g.option.is_command()).map(|g| g.option);
        match command {
            Some(Meaning::AddService) => self.add_service(rule, given),
            Some(Meaning::AddServer) => self.add_server(rule, given),
            Some(Meaning::SetTimeouts) => self.set_timeouts(given),
            Some(Meaning::OtherCommand(why)) => self.ledger.report(
                rule,
                Remark::left_out(why, "write what should be there into the configuration"),
            ),
            _ => self
                .ledger
                .report(rule, Remark::unknown("the line has no command", "begin it with -A or -a")),
        }
    }

    fn add_service(&mut self, rule: &[Word<'_>], given: Vec<Given<'_, '_>>) {
        let line = rule.first().map_or(0, |word| word.line);
        let (key, mark) = key(&given);
        let address = match (&key, mark) {
            (Some(Key::Address(protocol, vip, port)), _) => match *protocol {
                "tcp" => Ok((Protocol::Tcp, *vip, *port)),
                "udp" => Ok((Protocol::Udp, *vip, *port)),
                _ => Err(sctp()),
            },
            (Some(Key::Mark(_)), _) => Err(firewall_mark()),
            (None, true) => Err(Remark::unknown(
                "its address is not one in numbers",
                "names are not looked up: make the file with ipvsadm -S -n",
            )),
            (None, false) => Err(Remark::unknown(
                "it does not say which service",
                "name it with -t or -u, as ipvsadm(8) says",
            )),
        };
        let (protocol, vip, port) = match address {
            Ok(address) => address,
            Err(remark) => {
                self.ledger.report(rule, remark);
                if let Some(key) = key {
                    self.known.entry(key).or_insert(Err(line));
                }
                return;
            }
        };
        let place = Place { line, words: shown(&rule.iter().collect::<Vec<_>>()) };
        let options = self.service_options(given, vip, protocol);
        let service = Service {
            place,
            name: None,
            vip: vip.into(),
            port: (port != 0).then_some(port),
            protocol,
            scheduler: options.scheduler,
            one_packet: options.one_packet,
            persistence: options.persistence,
            check: None,
            reals: Vec::new(),
        };
        if let Some(key) = key {
            // A second service of one address is left out later; servers go to the first.
            self.known.entry(key).or_insert(Ok(self.found.services.len()));
        }
        self.found.services.push(service);
    }

    fn add_server(&mut self, rule: &[Word<'_>], given: Vec<Given<'_, '_>>) {
        let service = match key(&given).0.map(|key| self.known.get(&key)) {
            Some(Some(Ok(service))) => *service,
            Some(Some(Err(line))) => {
                let why = format!("its service in line {line} was not imported");
                self.ledger.report(rule, Remark::left_out(why, "as said there"));
                return;
            }
            _ => {
                self.ledger.report(
                    rule,
                    Remark::left_out(
                        "no line above adds its service",
                        "put the service's -A line in front of it",
                    ),
                );
                return;
            }
        };
        let port = self.found.services[service].port.unwrap_or(0);
        if let Some(real) = self.server(rule, given, port) {
            self.found.services[service].reals.push(real);
        }
    }

    fn set_timeouts(&mut self, given: Vec<Given<'_, '_>>) {
        for given in given {
            if given.option != Meaning::SetTimeouts || given.words.len() != 4 {
                self.out_of_place(&given);
                continue;
            }
            self.ledger.used([given.words[0]]);
            choices::timeouts(&mut self.found.timeouts, &given.words[1..], self.ledger);
        }
    }

    fn service_options<'w, 't>(
        &mut self,
        given: Vec<Given<'w, 't>>,
        vip: IpAddr,
        protocol: Protocol,
    ) -> ServiceOptions {
        let mut seen = Vec::new();
        let mut wanted = Wanted::default();
        for given in &given {
            let words = || given.words.iter().copied();
            let value = given.value.unwrap_or_default();
            if self.again(given, &mut seen) {
                continue;
            }
            match given.option {
                Meaning::AddService | Meaning::Tcp | Meaning::Udp => self.ledger.used(words()),
                Meaning::Scheduler => wanted.scheduler = Some(given),
                Meaning::Persistent => wanted.persistent = Some(given),
                Meaning::Netmask => wanted.netmask = Some(given),
                Meaning::Flags => wanted.flags = Some(given),
                Meaning::OnePacket => wanted.one_packet = Some(given),
                // The address says so itself.
                Meaning::Ipv6 if vip.is_ipv6() => self.ledger.used(words()),
                Meaning::Engine => self.ledger.report(words(), engine(value)),
                Meaning::AddServer
                | Meaning::SetTimeouts
                | Meaning::OtherCommand(_)
                | Meaning::Sctp
                | Meaning::Mark
                | Meaning::Ipv6
                | Meaning::RealServer
                | Meaning::Direct
                | Meaning::Tunnel
                | Meaning::Masquerade
                | Meaning::Weight
                | Meaning::Upper
                | Meaning::Lower
                | Meaning::TunnelType
                | Meaning::TunnelPort
                | Meaning::TunnelChecksum(_)
                | Meaning::Daemon
                | Meaning::Format => self.out_of_place(given),
            }
        }
        let flags: Vec<_> = wanted.flags.iter().map(|given| said(given)).collect();
        let timeout = wanted.persistent.map(said);
        let persistence = choices::persistence(
            timeout.as_ref(),
            wanted.netmask.map(said).as_ref(),
            vip.is_ipv4(),
            self.ledger,
        );
        let scheduler =
            choices::scheduler(wanted.scheduler.map(said).as_ref(), &flags, self.ledger);
        let one_packet = choices::one_packet(
            wanted.one_packet.map(said).as_ref(),
            protocol,
            persistence.is_some(),
            self.ledger,
        );
        ServiceOptions { scheduler, one_packet, persistence }
    }

    /// A real server of a service of this port, or `None` with its report.
    fn server(
        &mut self,
        rule: &[Word<'_>],
        given: Vec<Given<'_, '_>>,
        service_port: u16,
    ) -> Option<Real> {
        let found = |option| given.iter().find(|g| g.option == option);
        let all = || rule.iter();
        let Some(real) = found(Meaning::RealServer).and_then(|g| g.value) else {
            self.ledger.report(
                all(),
                Remark::unknown("it names no real server", "name it with -r, as ipvsadm(8) says"),
            );
            return None;
        };
        let Some((address, port)) = address_and_port(real) else {
            self.ledger.report(
                all(),
                Remark::unknown(
                    "its real server's address is not one in numbers",
                    "names are not looked up: make the file with ipvsadm -S -n",
                ),
            );
            return None;
        };
        let other_port = port != service_port && port != 0;
        let mut method = method(&given);
        if let Becomes::Nothing(remark) = becomes(&method, address, other_port) {
            self.ledger.report(all(), remark);
            return None;
        }
        let options = self.server_options(&given, &mut method);
        if other_port {
            let words =
                found(Meaning::RealServer).into_iter().flat_map(|g| g.words.iter().copied());
            self.ledger.report(words, same_port());
        }
        let (tunnel, commented, remark) = match becomes(&method, address, other_port) {
            Becomes::RealServer(tunnel, remark) => (tunnel, None, remark),
            Becomes::Comment(why, remark) => (RealTunnel::Ipip, Some(why), Some(remark)),
            Becomes::Nothing(remark) => {
                self.ledger.report(all(), remark);
                return None;
            }
        };
        if let Some(remark) = remark {
            self.ledger.report(all(), remark);
        }
        let line = rule.first().map_or(0, |word| word.line);
        let place = Place { line, words: shown(&rule.iter().collect::<Vec<_>>()) };
        let ServerOptions { weight, thresholds } = options;
        Some(Real { place, address, weight, thresholds, tunnel, commented })
    }

    /// Accounts for a server's options; those of its tunnel go to the method.
    fn server_options(&mut self, given: &[Given<'_, '_>], method: &mut Method) -> ServerOptions {
        let mut seen = Vec::new();
        let mut weight = DEFAULT_WEIGHT;
        let (mut upper, mut lower) = (None, None);
        for given in given {
            if self.again(given, &mut seen) {
                continue;
            }
            let words = || given.words.iter().copied();
            let value = given.value.unwrap_or_default();
            match given.option {
                Meaning::AddServer
                | Meaning::Tcp
                | Meaning::Udp
                | Meaning::RealServer
                | Meaning::Direct
                | Meaning::Tunnel
                | Meaning::Masquerade
                | Meaning::TunnelType => self.ledger.used(words()),
                Meaning::Weight => match number::<u32>(value) {
                    Some(number) => {
                        weight = number;
                        self.ledger.used(words());
                    }
                    None => self.ledger.report(words(), not_a_number()),
                },
                Meaning::Upper => upper = Some(said(given)),
                Meaning::Lower => lower = Some(said(given)),
                Meaning::TunnelPort => self.taken(given, method.take_port(value)),
                Meaning::TunnelChecksum(asked) => self.taken(given, method.take_checksum(asked)),
                Meaning::AddService
                | Meaning::SetTimeouts
                | Meaning::OtherCommand(_)
                | Meaning::Sctp
                | Meaning::Mark
                | Meaning::Ipv6
                | Meaning::Scheduler
                | Meaning::Persistent
                | Meaning::Netmask
                | Meaning::Engine
                | Meaning::Flags
                | Meaning::OnePacket
                | Meaning::Daemon
                | Meaning::Format => self.out_of_place(given),
            }
        }
        let thresholds = thresholds::read(upper.as_ref(), lower.as_ref(), self.ledger);
        ServerOptions { weight, thresholds }
    }

    /// An option is used, or what stands in its way is said.
    fn taken(&mut self, given: &Given<'_, '_>, taken: Result<(), Remark>) {
        let words = given.words.iter().copied();
        match taken {
            Ok(()) => self.ledger.used(words),
            Err(remark) => self.ledger.report(words, remark),
        }
    }

    /// Reports an option that was given before, or one that excludes it.
    fn again(&mut self, given: &Given<'_, '_>, seen: &mut Vec<Meaning>) -> bool {
        let again = seen.iter().any(|before| before.excludes(given.option));
        if again {
            self.ledger.report(
                given.words.iter().copied(),
                Remark::unknown("the line says it twice, or otherwise before", "leave one of them"),
            );
        }
        seen.push(given.option);
        again
    }

    fn out_of_place(&mut self, given: &Given<'_, '_>) {
        self.ledger.report(
            given.words.iter().copied(),
            Remark::unknown("it means nothing in this command", "leave it out"),
        );
    }
}

/// What a service is made of beside its address.
struct ServiceOptions {
    scheduler: schedulers::Chosen,
    one_packet: bool,
    persistence: Option<Persistence>,
}

/// What a real server is made of beside its address.
struct ServerOptions {
    weight: u32,
    thresholds: Thresholds,
}

/// The options that decide together.
#[derive(Default)]
struct Wanted<'g, 'w, 't> {
    scheduler: Option<&'g Given<'w, 't>>,
    flags: Option<&'g Given<'w, 't>>,
    one_packet: Option<&'g Given<'w, 't>>,
    persistent: Option<&'g Given<'w, 't>>,
    netmask: Option<&'g Given<'w, 't>>,
}

/// How the options say that packets reach the real server.
fn method(given: &[Given<'_, '_>]) -> Method {
    let found = |option| given.iter().find(|g| g.option == option);
    if found(Meaning::Masquerade).is_some() {
        return Method::Masquerade;
    }
    if found(Meaning::Tunnel).is_none() {
        return Method::Direct;
    }
    match found(Meaning::TunnelType).and_then(|g| g.value) {
        Some(kind) => Method::tunnel(kind),
        None => Method::IpInIp,
    }
}

fn said<'w, 't>(given: &Given<'w, 't>) -> Said<'w, 't> {
    Said { words: given.words.clone(), value: given.value.map(Cow::Borrowed) }
}

/// The place of a word in its line, of which it is a part.
fn problem(line: &str, word: &Word<'_>, message: String, help: &str) -> Problem {
    let start = (word.text.as_ptr() as usize).saturating_sub(line.as_ptr() as usize);
    Problem { span: start..start + word.text.len(), message, help: help.to_owned() }
}
