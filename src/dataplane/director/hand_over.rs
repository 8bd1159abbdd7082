//! To the worker that has the flow, where several share the traffic.
//!
//! The kernel brings most packets to their owner at once (see [`Steering`]). What arrives elsewhere
//! is handed over, with its bytes as they came: a packet straight to its owner, a fragment first to
//! the worker where the fragments of its datagram meet, which learns the owner from the first of
//! them and sends the others after it, in order. A frame is handed over twice at most.

use super::{
    super::{
        conntrack::Slot,
        fragments::{Fragments, Later, Lost, Piece, Release},
        icmp::{self, Message},
        ids::VipId,
        packet::{Datagram, protocol},
        path_mtu,
        steering::{Steering, Tuple},
        verdict::{DropReason, HandOver, Outlet, Source, Verdict},
    },
    Context, Director, LinkHeader, Received,
    balance::Incoming,
    fragment::send_copy,
};

/// A worker's place among the others.
pub struct Team {
    steering: Steering,
    number: u16,
    /// Owners of the datagrams whose fragments meet here; `None` where there is one worker.
    meeting: Option<Box<Fragments<u16>>>,
}

impl Team {
    /// There are no others.
    pub const ALONE: Self = Self { steering: Steering::ALONE, number: 0, meeting: None };

    /// Worker `number` of those that `steering` shares out among. Slots and seed as for
    /// [`Fragments::new`].
    pub fn new(steering: Steering, number: u16, slot_bytes: usize, seed: [u64; 4]) -> Self {
        let meeting = steering.is_shared().then(|| Box::new(Fragments::new(slot_bytes, seed)));
        Self { steering, number, meeting }
    }

    /// Whether there are others.
    #[inline]
    pub(super) const fn is_shared(&self) -> bool {
        self.meeting.is_some()
    }

    pub(super) fn meeting(&mut self) -> Option<&mut Fragments<u16>> {
        self.meeting.as_deref_mut()
    }
}

/// Whose a packet is.
pub(super) enum Whose<'a> {
    /// This worker's, or nobody's: it goes on here.
    Ours(Received<'a>),
    /// It was another's, or waits for its first fragment.
    Decided(Verdict),
}

impl<S: AsRef<[Slot]>> Director<S> {
    /// Hands a packet to a VIP over to its owner, unless that is this worker.
    pub(super) fn hand_over<'a, O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        vip: VipId,
        received: Received<'a>,
    ) -> Whose<'a> {
        match Piece::of(datagram) {
            Ok(Some(piece)) => {
                return self.hand_over_fragment(context, datagram, &piece, vip, received);
            }
            Ok(None) => {}
            // It is dropped, which any worker can.
            Err(_) => return Whose::Ours(received),
        }
        let owner = match datagram.protocol {
            protocol::TCP | protocol::UDP => self.owner_of(datagram, received.packet(), vip),
            protocol::ICMP | protocol::ICMPV6 => self.owner_of_quoted(datagram, received.packet()),
            _ => None,
        };
        // What has none is dropped or answered, which any worker can.
        match owner.filter(|owner| *owner != self.parts.team.number) {
            None => Whose::Ours(received),
            Some(to) => {
                let handed = HandOver { to, source: Source::Tap, settled: true };
                let frame = &received.slot[received.frame];
                Whose::Decided(give(context, handed, frame))
            }
        }
    }

    /// The owner of a packet with ports in it.
    fn owner_of(&self, datagram: &Datagram, packet: &[u8], vip: VipId) -> Option<u16> {
        if !matches!(datagram.protocol, protocol::TCP | protocol::UDP) {
            return None;
        }
        let key = Incoming::read(datagram, packet, vip).ok()?.key;
        Some(self.parts.team.steering.owner(&Tuple {
            client: &datagram.source,
            client_port: key.client_port,
            vip: &datagram.destination,
            vip_port: key.vip_port,
            protocol: key.protocol,
        }))
    }

    /// The owner of the flow that an ICMP error quotes, as VIP → client.
    fn owner_of_quoted(&self, datagram: &Datagram, packet: &[u8]) -> Option<u16> {
        let Ok(Message::Error(error)) = icmp::classify(datagram, packet) else { return None };
        let quote = &error.quote;
        let (vip_port, client_port) = quote.ports(&packet[error.quote_offset..])?;
        // What quotes another host's packet is dropped, by whomever.
        (quote.source == datagram.destination).then(|| {
            self.parts.team.steering.owner(&Tuple {
                client: &quote.destination,
                client_port,
                vip: &quote.source,
                vip_port,
                protocol: quote.protocol,
            })
        })
    }

    /// Hands an error about an outer packet over to the owner of the flow that it quotes: there it
    /// can be checked. `None` where it is this worker's, or quotes too little to say.
    pub(super) fn hand_over_outer_error<O: Outlet>(
        &self,
        context: &mut Context<'_, O>,
        packet: &[u8],
    ) -> Option<Verdict> {
        let quote = path_mtu::quoted_flow(packet, &context.snapshot.reals)?;
        let to = self.parts.team.steering.owner(&Tuple {
            client: &quote.source,
            client_port: quote.source_port,
            vip: &quote.destination,
            vip_port: quote.destination_port,
            protocol: quote.protocol,
        });
        let handed = HandOver { to, source: Source::OuterError, settled: true };
        (to != self.parts.team.number).then(|| give(context, handed, packet))
    }

    fn hand_over_fragment<'a, O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        piece: &Piece,
        vip: VipId,
        received: Received<'a>,
    ) -> Whose<'a> {
        let here = self.parts.team.number;
        let to = self.parts.team.steering.meeting(&datagram.source, &datagram.destination);
        if to != here {
            let handed = HandOver { to, source: Source::Tap, settled: false };
            return Whose::Decided(give(context, handed, &received.slot[received.frame]));
        }
        if piece.is_first() {
            return match self.owner_of(datagram, received.packet(), vip) {
                Some(owner) => Whose::Decided(
                    self.first_to_owner(context, datagram, piece, vip, received, owner),
                ),
                None => Whose::Ours(received),
            };
        }
        let mut lost = Lost::default();
        let Some(meeting) = self.parts.team.meeting() else { return Whose::Ours(received) };
        let later = meeting.later(context.now, piece, received.packet(), &mut lost);
        self.count_lost(lost);
        match later {
            Later::Forward(owner) if owner == here => Whose::Ours(received),
            Later::Forward(to) => {
                let handed = HandOver { to, source: Source::Tap, settled: true };
                Whose::Decided(give(context, handed, &received.slot[received.frame]))
            }
            Later::Held => Whose::Decided(Verdict::Hold),
            Later::Refused => Whose::Decided(Verdict::Drop(DropReason::FragmentOverflow)),
        }
    }

    /// A first fragment, at the worker where its datagram's meet: it goes to its owner, and after
    /// it those that waited for it.
    fn first_to_owner<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        piece: &Piece,
        vip: VipId,
        received: Received<'_>,
        owner: u16,
    ) -> Verdict {
        // Held fragments came over the same link; read before the first one is rewritten.
        let link = LinkHeader::back(received.slot, received.frame.start);
        let mut lost = Lost::default();
        let release =
            self.parts.team.meeting().map(|m| m.first(context.now, piece, owner, &mut lost));
        self.count_lost(lost);
        let verdict = if owner == self.parts.team.number {
            self.fragment(context, datagram, vip, received)
        } else {
            let handed = HandOver { to: owner, source: Source::Tap, settled: true };
            give(context, handed, &received.slot[received.frame])
        };
        if let Some(release) = release {
            self.release_met(context, release, vip, owner, link);
        }
        verdict
    }

    /// Sends what waited for its first fragment after it.
    fn release_met<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        release: Release,
        vip: VipId,
        owner: u16,
        link: LinkHeader,
    ) {
        // Taken out for the while, so that it is not borrowed from the director it works with.
        let mut staging = std::mem::take(&mut self.staging);
        while let Some(packet) = self.parts.team.meeting().and_then(|m| m.release(release)) {
            let received = Received::held(&mut staging, packet, &link);
            let verdict = if owner == self.parts.team.number {
                let verdict = match Datagram::parse(received.packet()) {
                    Ok(datagram) => self.fragment(context, &datagram, vip, received),
                    // It was parsed when it was held.
                    Err(error) => Verdict::Drop(error.into()),
                };
                send_copy(context.outlet, verdict, &staging)
            } else {
                let handed = HandOver { to: owner, source: Source::Tap, settled: true };
                give(context, handed, &received.slot[received.frame])
            };
            self.parts.counters.worker.held.sub(1);
            self.account(&verdict);
        }
        self.staging = staging;
    }
}

/// Queues a frame for its worker.
fn give<O: Outlet>(context: &mut Context<'_, O>, handed: HandOver, frame: &[u8]) -> Verdict {
    if context.outlet.hand_over(handed, frame) {
        Verdict::HandedOver
    } else {
        Verdict::Drop(DropReason::HandOverFull)
    }
}
