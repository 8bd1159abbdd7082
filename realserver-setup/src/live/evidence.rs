//! What was seen of probes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What was seen while it was listened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// By VIP, those that nothing was seen of too.
    pub vips: BTreeMap<IpAddr, Seen>,
    /// Packets that the kernel's reverse-path filter dropped meanwhile, whosever they were.
    pub reverse_path_drops: u64,
    /// Packets that went by without being looked at, for want of time.
    pub missed: u64,
}

/// What was seen of one VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Probes in tunnel packets from a director, on their arrival.
    pub arrived: u64,
    /// Other tunnel packets from a director, on their arrival.
    pub others: u64,
    /// Who else has sent tunnelled probes.
    pub strangers: BTreeSet<IpAddr>,
    /// Probes for which this host told their sender that nobody here takes them.
    pub refused: u64,
    /// Probes behind a device that unwraps.
    pub unwrapped: u64,
    /// Replies that left in which this host claims the VIP.
    pub arp_replies: u64,
    /// By port of the VIP that a probe tried to connect to.
    pub ports: BTreeMap<u16, Connecting>,
    /// Segments of answers that had to be sent again, of a size that only full packets have.
    pub repeated: u64,
    /// What came of being asked for bytes.
    pub download: Carried,
    /// What came of being sent bytes.
    pub upload: Carried,
}

/// Probes that tried to connect to a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connecting {
    /// SYNs that were unwrapped.
    pub asked: u64,
    /// SYN-ACKs that left.
    pub accepted: u64,
    /// Resets that left.
    pub refused: u64,
    /// What came from who had got a SYN-ACK.
    pub opened: u64,
    /// Largest segment that was announced in a SYN-ACK, in bytes.
    pub announced: Option<u16>,
}

/// Bytes to be carried one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// How often that was asked for.
    pub asked: u64,
    /// How often all of them were there.
    pub done: u64,
}

impl Seen {
    /// Whether a whole exchange was seen: bytes have come both ways, and every service that a probe
    /// tried was reached. `port` is the one that this host listens on for that.
    #[must_use]
    pub fn is_whole(&self, port: u16) -> bool {
        let services = self.ports.iter().filter(|(at, _)| **at != port);
        self.download.done > 0
            && self.upload.done > 0
            && services.into_iter().all(|(_, service)| service.asked == 0 || service.opened > 0)
    }
}
