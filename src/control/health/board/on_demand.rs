//! Source ports for what an operator tries (`adit probe`): blocks as those of checks, for any port of a
//! VIP, also where nothing is checked. They are pinned while they are used and a minute longer, so
//! that one who tries again does not wait for the worker.

use super::super::blocks::Place;
use super::{Board, KEPT, Pin, Pins, TargetKey};
use crate::control::config::PROBE_PORTS;
use crate::dataplane::time::Time;
use std::net::SocketAddr;

/// Ports tried at a time. One who may ask can ask for every port of every real server; more than
/// these nobody reads.
const TRIED_AT_A_TIME: usize = 256;

/// One port of one real server that is tried.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) key: TargetKey,
    pub(super) port: u16,
    /// Its block of source ports; `None` where there was none left.
    pub(super) block: Option<usize>,
    pub(super) pin: Option<Pin>,
    /// Which port of the block is next.
    turn: u16,
    /// When it is forgotten.
    until: Time,
}

impl Trial {
    fn place(&self) -> Place {
        (self.key.vip, self.port)
    }
}

/// Whether a connection can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// From this address and port.
    From(SocketAddr),
    /// Not before the worker knows of the port.
    At(Time),
    /// Not at all, and why.
    Not(&'static str),
}

impl Board {
    /// Has source ports for `port` of the VIP at a real server, from now on for a minute; `None` where
    /// too much is tried already. The core has to be told where [`is_pinned`](Self::is_pinned) says
    /// no.
    pub fn try_port(&mut self, key: &TargetKey, port: u16, now: Time) -> Option<u64> {
        let same = |trial: &Trial| trial.key == *key && trial.port == port;
        let known = self.trials.iter().find(|(_, trial)| same(trial)).map(|(id, _)| *id);
        let id = match known {
            Some(id) => id,
            None if self.trials.len() >= TRIED_AT_A_TIME => return None,
            None => {
                self.next_id += 1;
                let key = key.clone();
                let trial = Trial { key, port, block: None, pin: None, turn: 0, until: now };
                self.trials.insert(self.next_id, trial);
                self.next_id
            }
        };
        let most = self.settings.blocks();
        let trial = self.trials.get_mut(&id)?;
        trial.until = now + KEPT;
        if trial.block.is_none() {
            trial.block = self.blocks.take(trial.place(), id, most);
        }
        Some(id)
    }

    /// Whether the core has been told of a port that is tried, or cannot be.
    #[must_use]
    pub fn is_pinned(&self, id: u64) -> bool {
        self.trials.get(&id).is_none_or(|trial| trial.block.is_none() || trial.pin.is_some())
    }

    /// Where the next connection to a port that is tried comes from.
    pub fn ready(&mut self, id: u64, now: Time) -> Ready {
        let Some(trial) = self.trials.get_mut(&id) else {
            return Ready::Not("its source ports have been given away");
        };
        let Some(pin) = trial.pin else {
            return Ready::Not(match trial.block {
                None => "no source ports are left: widen `ports` in [health]",
                Some(_) => {
                    "this host has no address of the VIP's IP version to ask from: give `source` in [health]"
                }
            });
        };
        if pin.from > now {
            return Ready::At(pin.from);
        }
        let port = pin.first + trial.turn;
        trial.turn = (trial.turn + 1) % PROBE_PORTS;
        Ready::From(SocketAddr::new(pin.source, port))
    }

    /// Forgets what was not tried for a minute; whether there was anything, of which the core should
    /// be told.
    pub fn forget_tried(&mut self, now: Time) -> bool {
        let old: Vec<u64> = self
            .trials
            .iter()
            .filter_map(|(id, trial)| (trial.until <= now).then_some(*id))
            .collect();
        for id in &old {
            self.give_up_trial(*id);
        }
        !old.is_empty()
    }

    /// A check goes before what is tried: takes the block of one at this place.
    pub(super) fn take_tried_block(&mut self, place: Place, id: u64, most: usize) -> Option<usize> {
        let has = |trial: &Trial| trial.place() == place && trial.block.is_some();
        let tried = self.trials.iter().find(|(_, trial)| has(trial)).map(|(id, _)| *id)?;
        self.give_up_trial(tried);
        self.blocks.take(place, id, most)
    }

    fn give_up_trial(&mut self, id: u64) {
        let Some(trial) = self.trials.remove(&id) else { return };
        if let Some(block) = trial.block {
            self.blocks.release(trial.place(), block);
        }
    }

    /// Other ports: what was tried has none of these. After checks have theirs.
    pub(super) fn deal_trials_anew(&mut self, most: usize) {
        for (id, trial) in &mut self.trials {
            let place = trial.place();
            trial.block = self.blocks.take(place, *id, most);
            trial.pin = None;
        }
    }

    /// The core has been told of these.
    pub(super) fn told_trials(&mut self, pins: &Pins, now: Time) {
        let first_port = self.settings.ports.0;
        for (id, trial) in &mut self.trials {
            super::pin_anew(&mut trial.pin, pins.get(id).copied(), trial.block, first_port, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;
    use crate::dataplane::conntrack::FlowKey;
    use crate::dataplane::ids::{DestinationId, VipId};
    use crate::dataplane::packet;
    use crate::dataplane::probe::{Pinned, Probes};
    use std::net::IpAddr;

    /// Of the two services one is checked. Ports for two blocks at each place.
    const TEXT: &str = "[director]\ninterface = \"eth0\"\n[health]\nports = \"61000-61007\"\n\
        [[service]]\nname = \"db\"\nvip = \"192.0.2.1\"\nport = 5432\n\
        check = { kind = \"tcp\" }\n\
        [[service.real]]\naddress = \"10.0.0.1\"\n\
        [[service]]\nname = \"log\"\nvip = \"192.0.2.1\"\nport = 514\nprotocol = \"udp\"\n\
        [[service.real]]\naddress = \"10.0.0.1\"\n[[service.real]]\naddress = \"10.0.0.2\"\n";

    fn key(service: &str, real: u8) -> TargetKey {
        let vip = [192, 0, 2, 1].into();
        TargetKey { service: service.to_owned(), vip, real: [10, 0, 0, real].into() }
    }

    fn tell(board: &mut Board, now: Time) -> Probes {
        let destination = |key: &TargetKey| {
            let IpAddr::V4(real) = key.real else { return None };
            Some((VipId(0), DestinationId(u32::from(real.octets()[3]))))
        };
        let source: IpAddr = [10, 0, 0, 254].into();
        let (probes, pins) = board.probes(|_| Some(source), destination);
        board.told(&pins, now);
        probes
    }

    fn board() -> Board {
        let mut board = Board::new(5);
        board.configure(&parse(TEXT, "t").unwrap(), Time(0));
        tell(&mut board, Time(0));
        board
    }

    fn from(board: &mut Board, id: u64, now: Time) -> SocketAddr {
        let Ready::At(at) = board.ready(id, now) else { panic!("it is new to the worker") };
        let Ready::From(from) = board.ready(id, at) else { panic!("the worker has it now") };
        from
    }

    fn pinned(probes: &Probes, from: SocketAddr, port: u16) -> Pinned {
        let client = packet::address(from.ip());
        let protocol = packet::protocol::TCP;
        let (vip, client_port) = (VipId(0), from.port());
        let key = FlowKey { client, client_port, vip, vip_port: port, protocol };
        probes.pinned(&key, 255, false)
    }

    #[test]
    fn what_is_tried_is_pinned_beside_checks_and_without_them() {
        let mut board = board();
        for (service, real, port) in [("db", 1, 5432), ("db", 1, 7706), ("log", 2, 7706)] {
            let id = board.try_port(&key(service, real), port, Time(0)).unwrap();
            assert!(!board.is_pinned(id));
            let probes = tell(&mut board, Time(0));
            assert!(board.is_pinned(id));
            let from = from(&mut board, id, Time(0));
            let expected = Pinned::To(DestinationId(u32::from(real)));
            assert_eq!(pinned(&probes, from, port), expected, "{service} {port}");
            assert_eq!(board.try_port(&key(service, real), port, Time(1)), Some(id), "once more");
        }
        // The check has a block of its own at that place.
        let check = board.due(Time(1_000_000_000), |_| true).0[0].from.port();
        assert!((61_000..61_004).contains(&check), "{check}");
    }

    #[test]
    fn a_check_goes_before_what_is_tried_and_what_is_old_is_forgotten() {
        let mut board = board();
        let tried = board.try_port(&key("log", 1), 5432, Time(0)).unwrap();
        let late = board.try_port(&key("log", 2), 5432, Time(0)).unwrap();
        tell(&mut board, Time(0));
        assert!(matches!(board.ready(late, Time(0)), Ready::Not(why) if why.contains("`ports`")));
        from(&mut board, tried, Time(0));
        // Another real server is checked there now.
        let more = TEXT.replacen(
            "[[service.real]]",
            "[[service.real]]\naddress = \"10.0.0.9\"\n[[service.real]]",
            1,
        );
        board.configure(&parse(&more, "t").unwrap(), Time(0));
        let probes = tell(&mut board, Time(0));
        assert!(matches!(board.ready(tried, Time(0)), Ready::Not(_)));
        let of = |port| pinned(&probes, SocketAddr::from(([10, 0, 0, 254], port)), 5432);
        assert_eq!(of(61_004), Pinned::To(DestinationId(9)));
        let before = board.try_port(&key("db", 1), 80, Time(0)).unwrap();
        assert!(!board.forget_tried(Time(0) + KEPT / 2));
        assert!(board.forget_tried(Time(0) + KEPT));
        assert!(matches!(board.ready(before, Time(0)), Ready::Not(_)));
        assert!(!board.forget_tried(Time(0) + KEPT), "told once");
    }

    #[test]
    fn not_every_port_there_is_can_be_tried_at_a_time() {
        let mut board = board();
        let tried = |port| board.try_port(&key("db", 1), port, Time(0));
        let taken = (1..=1000).filter_map(tried).count();
        assert_eq!(taken, TRIED_AT_A_TIME);
        assert!(board.forget_tried(Time(0) + KEPT));
        assert!(board.try_port(&key("db", 1), 1000, Time(0)).is_some());
    }
}
