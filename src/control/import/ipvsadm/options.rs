//! The options of ipvsadm(8).

use super::super::forwarding::Checksum;

/// What an option means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    AddService,
    AddServer,
    SetTimeouts,
    /// A command that adds nothing, and why that is so.
    OtherCommand(&'static str),
    Tcp,
    Udp,
    Sctp,
    Mark,
    Ipv6,
    Scheduler,
    Persistent,
    Netmask,
    Engine,
    Flags,
    OnePacket,
    RealServer,
    Direct,
    Tunnel,
    Masquerade,
    Weight,
    Upper,
    Lower,
    TunnelType,
    TunnelPort,
    TunnelChecksum(Checksum),
    /// Of the daemon that synchronises connections.
    Daemon,
    /// Says how to print; means nothing in a rule.
    Format,
}

impl Meaning {
    /// Whether only one of both may stand in a line.
    pub(super) fn excludes(self, other: Self) -> bool {
        let service = |m| matches!(m, Self::Tcp | Self::Udp | Self::Sctp | Self::Mark);
        let method = |m| matches!(m, Self::Direct | Self::Tunnel | Self::Masquerade);
        let checksum = |m| matches!(m, Self::TunnelChecksum(_));
        let both = |of: fn(Self) -> bool| of(self) && of(other);
        self == other || both(service) || both(method) || both(checksum)
    }

    pub(super) fn is_command(self) -> bool {
        matches!(
            self,
            Self::AddService | Self::AddServer | Self::SetTimeouts | Self::OtherCommand(_)
        )
    }
}

/// How many values follow an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    None,
    One,
    /// A number, if there is one.
    Maybe,
    /// One, which an old `ipvsadm` leaves out.
    OneOrEnd,
    Three,
}

const CHANGES: &str = "it changes rules; only what is added is imported";
const SYNC: &str = "connections are not synchronised between directors yet";

/// Short name (`\0`: none), long name, values, meaning.
const OPTIONS: [(char, &str, Values, Meaning); 58] = [
    ('A', "add-service", Values::None, Meaning::AddService),
    ('a', "add-server", Values::None, Meaning::AddServer),
    ('\0', "set", Values::Three, Meaning::SetTimeouts),
    ('E', "edit-service", Values::None, Meaning::OtherCommand(CHANGES)),
    ('e', "edit-server", Values::None, Meaning::OtherCommand(CHANGES)),
    ('D', "delete-service", Values::None, Meaning::OtherCommand(CHANGES)),
    ('d', "delete-server", Values::None, Meaning::OtherCommand(CHANGES)),
    ('C', "clear", Values::None, Meaning::OtherCommand("a configuration begins empty")),
    ('Z', "zero", Values::None, Meaning::OtherCommand("a configuration has no counters")),
    ('R', "restore", Values::None, Meaning::OtherCommand("the rules themselves are imported")),
    ('S', "save", Values::None, Meaning::OtherCommand("it prints")),
    ('L', "list", Values::None, Meaning::OtherCommand("it prints")),
    ('l', "list", Values::None, Meaning::OtherCommand("it prints")),
    ('h', "help", Values::None, Meaning::OtherCommand("it prints")),
    ('\0', "start-daemon", Values::One, Meaning::OtherCommand(SYNC)),
    ('\0', "stop-daemon", Values::One, Meaning::OtherCommand(SYNC)),
    ('t', "tcp-service", Values::One, Meaning::Tcp),
    ('u', "udp-service", Values::One, Meaning::Udp),
    ('\0', "sctp-service", Values::One, Meaning::Sctp),
    ('\0', "sctp", Values::One, Meaning::Sctp),
    ('f', "fwmark-service", Values::One, Meaning::Mark),
    ('6', "ipv6", Values::None, Meaning::Ipv6),
    ('s', "scheduler", Values::One, Meaning::Scheduler),
    ('p', "persistent", Values::Maybe, Meaning::Persistent),
    ('M', "netmask", Values::One, Meaning::Netmask),
    ('\0', "pe", Values::One, Meaning::Engine),
    ('b', "sched-flags", Values::OneOrEnd, Meaning::Flags),
    ('o', "ops", Values::None, Meaning::OnePacket),
    ('r', "real-server", Values::One, Meaning::RealServer),
    ('g', "gatewaying", Values::None, Meaning::Direct),
    ('i', "ipip", Values::None, Meaning::Tunnel),
    ('m', "masquerading", Values::None, Meaning::Masquerade),
    ('w', "weight", Values::One, Meaning::Weight),
    ('x', "u-threshold", Values::One, Meaning::Upper),
    ('y', "l-threshold", Values::One, Meaning::Lower),
    ('\0', "tun-type", Values::One, Meaning::TunnelType),
    ('\0', "tun-port", Values::One, Meaning::TunnelPort),
    ('\0', "tun-nocsum", Values::None, Meaning::TunnelChecksum(Checksum::Without)),
    ('\0', "tun-csum", Values::None, Meaning::TunnelChecksum(Checksum::With)),
    ('\0', "tun-remcsum", Values::None, Meaning::TunnelChecksum(Checksum::Remote)),
    ('\0', "tun-info", Values::None, Meaning::Format),
    ('n', "numeric", Values::None, Meaning::Format),
    ('c', "connection", Values::None, Meaning::Format),
    ('\0', "stats", Values::None, Meaning::Format),
    ('\0', "rate", Values::None, Meaning::Format),
    ('\0', "exact", Values::None, Meaning::Format),
    ('\0', "sort", Values::None, Meaning::Format),
    ('\0', "nosort", Values::None, Meaning::Format),
    ('\0', "timeout", Values::None, Meaning::Format),
    ('\0', "daemon", Values::None, Meaning::Format),
    ('\0', "thresholds", Values::None, Meaning::Format),
    ('\0', "persistent-conn", Values::None, Meaning::Format),
    ('\0', "syncid", Values::One, Meaning::Daemon),
    ('\0', "sync-maxlen", Values::One, Meaning::Daemon),
    ('\0', "mcast-interface", Values::One, Meaning::Daemon),
    ('\0', "mcast-group", Values::One, Meaning::Daemon),
    ('\0', "mcast-port", Values::One, Meaning::Daemon),
    ('\0', "mcast-ttl", Values::One, Meaning::Daemon),
];

/// The option a word stands for, and a value in the same word.
pub(super) fn option(text: &str) -> Option<(Meaning, Values, Option<&str>)> {
    let find = |test: &dyn Fn(char, &str) -> bool| {
        OPTIONS.iter().find(|(short, long, ..)| test(*short, long)).map(|o| (o.2, o.3))
    };
    if let Some(long) = text.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let (values, option) = find(&|_, long| long == name)?;
        if value.is_some() && matches!(values, Values::None | Values::Three) {
            return None;
        }
        return Some((option, values, value));
    }
    let mut letters = text.strip_prefix('-')?.chars();
    let letter = letters.next().filter(|letter| *letter != '\0')?;
    let (values, option) = find(&|short, _| short == letter)?;
    let value = letters.as_str();
    if value.is_empty() {
        return Some((option, values, None));
    }
    let value = value.strip_prefix('=').unwrap_or(value);
    (values != Values::None).then_some((option, values, Some(value)))
}
