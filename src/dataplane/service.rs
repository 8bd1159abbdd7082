//! Virtual services and how a packet finds its own: exact port, then range, then any.

use std::{cmp::Reverse, net::IpAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use ahash::AHashMap;

use super::{
    admission::Admission,
    conntrack::Timeouts,
    counters::DestinationCounters,
    hash::{ClientPrefix, FlowTuple, HashKey, PersistenceGroup, PlacementKey},
    ids::{DestinationId, VipId},
    packet::{Address, address, protocol},
    scheduler::{Candidates, KeyedBy, Loads, Member, Scheduler, Threshold},
    time::Time,
    vip_prefix::VipPrefix,
};

/// Protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
        }
    }
}

/// Ports of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// Named ports, one or more.
    List(Box<[u16]>),
    /// A range with both ends.
    Range(RangeInclusive<u16>),
    /// Every port that no other service of the VIP and protocol has.
    Any,
}

/// What happens to the DF bit on the outer header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DfPolicy {
    /// As the inner packet's (RFC 2003 §3.1).
    #[default]
    Copy,
    /// Never set, for paths that filter fragmentation-needed messages.
    Clear,
}

/// Persistence of a service: flows of one client prefix go to one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersistencePolicy {
    /// Group whose services share persistence.
    pub group: PersistenceGroup,
    /// How long after its last use an entry holds.
    pub timeout: Duration,
    /// Prefix length of IPv4 clients.
    pub ipv4_prefix: u8,
    /// Prefix length of IPv6 clients.
    pub ipv6_prefix: u8,
}

/// One virtual service, as a snapshot holds it.
pub struct Service {
    /// Name in the config.
    pub name: Box<str>,
    /// Its VIP, or the prefix all of whose addresses are.
    pub prefix: VipPrefix,
    /// Each address of `prefix` in the directory, in their order.
    pub vips: Box<[VipId]>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its ports.
    pub ports: Ports,
    /// Chooses among the members.
    pub scheduler: Arc<dyn Scheduler>,
    /// Members as the scheduler sees them.
    pub members: Box<[Member]>,
    /// Destination of each member, in the order of `members`.
    pub destinations: Box<[DestinationId]>,
    /// Connection thresholds of each member, in the order of `members`; empty where none has any.
    pub thresholds: Box<[Option<Threshold>]>,
    /// Limits on its new flows, if any.
    pub admission: Option<Arc<Admission>>,
    /// Persistence, if any.
    pub persistence: Option<PersistencePolicy>,
    /// Idle timeouts of its flows.
    pub timeouts: Timeouts,
    /// DF on the outer header.
    pub df: DfPolicy,
    /// Whether each datagram is scheduled anew and nothing enters the flow table (UDP alone).
    pub one_packet: bool,
}

impl PersistencePolicy {
    /// The prefix that stands for a client.
    pub fn prefix(&self, client: IpAddr) -> ClientPrefix {
        ClientPrefix::new(client, self.ipv4_prefix, self.ipv6_prefix)
    }
}

impl Service {
    /// What decides the placement of a flow of this service: what its scheduler looks at, or with
    /// persistence its client's prefix.
    pub fn placement_key(&self, hash_key: &HashKey, flow: &FlowTuple) -> PlacementKey {
        if let Some(policy) = &self.persistence {
            return PlacementKey::of_client(hash_key, &policy.prefix(flow.client), policy.group);
        }
        match self.scheduler.keyed_by() {
            KeyedBy::Flow => PlacementKey::of_flow(hash_key, flow),
            KeyedBy::Client => PlacementKey::of_address(hash_key, flow.client),
            KeyedBy::ClientAndPort => {
                PlacementKey::of_endpoint(hash_key, flow.client, flow.client_port)
            }
            KeyedBy::Vip => PlacementKey::of_vip(hash_key, flow.vip),
        }
    }

    /// What the scheduler chooses among, with the gauges of all destinations.
    #[inline]
    pub fn candidates<'a>(
        &'a self,
        counters: &'a [DestinationCounters],
        now: Time,
    ) -> Candidates<'a> {
        let loads = Loads::new(&self.destinations, counters);
        Candidates { members: &self.members, loads, thresholds: &self.thresholds, now }
    }

    /// A flow begins at a destination, or has just begun: its threshold takes note.
    #[inline]
    pub fn note_load(&self, destination: DestinationId, counters: &[DestinationCounters]) {
        if self.thresholds.is_empty() {
            return;
        }
        let position = self.destinations.iter().position(|id| *id == destination);
        let Some(position) = position else { return };
        if let Some(Some(threshold)) = self.thresholds.get(position) {
            threshold.note(Loads::new(&self.destinations, counters).of(position));
        }
    }

    /// The member with that destination, if it is still configured.
    pub fn member(&self, destination: DestinationId) -> Option<&Member> {
        let position = self.destinations.iter().position(|id| *id == destination)?;
        self.members.get(position)
    }
}

/// A range of ports and the place of its service.
struct PortRange {
    ports: RangeInclusive<u16>,
    service: u32,
}

/// Services by what packets carry. Built by control, never changed.
#[derive(Default)]
pub struct ServiceTable {
    services: Box<[Service]>,
    vips: AHashMap<Address, VipId>,
    ports: PortIndex,
}

/// Places of services by VIP, protocol and port.
#[derive(Default)]
struct PortIndex {
    exact: AHashMap<(VipId, u8, u16), u32>,
    ranges: AHashMap<(VipId, u8), Vec<PortRange>>,
    any: AHashMap<(VipId, u8), u32>,
}

impl PortIndex {
    /// Enters the ports of a service at one of its addresses, but for those that a service with a
    /// longer prefix has taken there.
    fn claim(&mut self, vip: VipId, service: &Service, index: u32, services: &[Service]) {
        let protocol = service.protocol.number();
        let at = (vip, protocol);
        let is_longer = |place: u32| {
            services
                .get(place as usize)
                .is_some_and(|s| s.prefix.length() > service.prefix.length())
        };
        // Exact ports of the other are found before ranges and any in any case.
        let all_taken = self.any.get(&at).copied().is_some_and(is_longer);
        match &service.ports {
            _ if all_taken => {}
            Ports::List(ports) => {
                for port in ports {
                    let taken = self.find(vip, protocol, *port);
                    if !taken.is_some_and(is_longer) {
                        self.exact.entry((vip, protocol, *port)).or_insert(index);
                    }
                }
            }
            Ports::Range(range) => {
                let ports = range.clone();
                self.ranges.entry(at).or_default().push(PortRange { ports, service: index });
            }
            Ports::Any => {
                self.any.entry(at).or_insert(index);
            }
        }
    }

    /// Exact port before range before any.
    fn find(&self, vip: VipId, protocol: u8, port: u16) -> Option<u32> {
        let at = (vip, protocol);
        self.exact
            .get(&(vip, protocol, port))
            .copied()
            .or_else(|| {
                let ranges = self.ranges.get(&at)?;
                ranges.iter().find(|range| range.ports.contains(&port)).map(|range| range.service)
            })
            .or_else(|| self.any.get(&at).copied())
    }
}

impl ServiceTable {
    /// Indexes `services`. Of two that claim the same port of the same address, the one with the
    /// longer prefix wins, whatever the ports of the other; of two prefixes of one length the
    /// first (config refuses that).
    pub fn new(services: Vec<Service>) -> Self {
        let mut table = Self { services: services.into(), ..Self::default() };
        let services = &table.services;
        let mut order: Vec<(u32, &Service)> = (0..).zip(services).collect();
        order.sort_by_key(|(_, service)| Reverse(service.prefix.length()));
        for (index, service) in order {
            for (address_of_it, vip) in service.prefix.addresses().zip(&service.vips) {
                table.vips.insert(address(address_of_it), *vip);
                table.ports.claim(*vip, service, index, services);
            }
        }
        table
    }

    /// Adds VIPs that have no service any more, but still flows: they are answered and forwarded.
    pub fn keep_vips(&mut self, vips: impl IntoIterator<Item = (Address, VipId)>) {
        for (address, vip) in vips {
            self.vips.entry(address).or_insert(vip);
        }
    }

    /// The VIP with that address.
    pub fn vip(&self, address: &Address) -> Option<VipId> {
        self.vips.get(address).copied()
    }

    /// Whether a VIP has services or flows here, for ARP and neighbour answers.
    pub fn vips(&self) -> impl Iterator<Item = (&Address, VipId)> {
        self.vips.iter().map(|(address, vip)| (address, *vip))
    }

    /// The service of a packet: that with the longest prefix; at that exact port before range
    /// before any.
    pub fn find(&self, vip: VipId, protocol: u8, port: u16) -> Option<&Service> {
        self.services.get(self.ports.find(vip, protocol, port)? as usize)
    }

    /// The services alone, to make another table of.
    #[cfg(test)]
    pub fn into_services(self) -> Vec<Service> {
        self.services.into()
    }

    /// All services, in config order.
    pub fn services(&self) -> &[Service] {
        &self.services
    }
}
