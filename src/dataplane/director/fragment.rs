//! Fragments of datagrams: the first decides, the others follow it, those that came too early wait.

use super::{
    super::{
        conntrack::{FlowKey, Slot},
        fragments::{Later, Lost, Piece, PieceError, Release},
        ids::{DestinationId, VipId},
        packet::{Datagram, protocol},
        time::Time,
        verdict::{Account, DropReason, EgressId, Outlet, Verdict},
    },
    Context, Director, LinkHeader, Received,
    balance::{Incoming, Refusal},
};

impl<S: AsRef<[Slot]>> Director<S> {
    /// A fragment of a datagram to a VIP.
    pub(super) fn fragment<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        vip: VipId,
        received: Received<'_>,
    ) -> Verdict {
        match Piece::of(datagram) {
            Ok(Some(piece)) if piece.is_first() => {
                self.first_fragment(context, datagram, &piece, vip, received)
            }
            Ok(Some(piece)) => self.later_fragment(context, datagram, &piece, received),
            Ok(None) => self.balance(context, datagram, vip, received),
            Err(PieceError::Tiny) => Verdict::Drop(DropReason::TinyFragment),
            Err(PieceError::Malformed) => Verdict::Drop(DropReason::Malformed),
        }
    }

    fn first_fragment<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        piece: &Piece,
        vip: VipId,
        received: Received<'_>,
    ) -> Verdict {
        match datagram.protocol {
            protocol::TCP | protocol::UDP => {}
            protocol::ICMP | protocol::ICMPV6 => return Verdict::Drop(DropReason::IcmpUnsupported),
            _ => return Verdict::Drop(DropReason::NoService),
        }
        let incoming = match Incoming::read(datagram, received.packet(), vip) {
            Ok(incoming) => incoming,
            Err(error) => return Verdict::Drop(error.into()),
        };
        let destination = match self.destination_again(context, piece, &incoming) {
            Some(destination) => destination,
            None => match self.destination_of(context, &incoming, datagram) {
                Ok(destination) => destination,
                Err(Refusal::Drop(reason)) => return Verdict::Drop(reason),
                Err(Refusal::Reset) => return Verdict::Drop(DropReason::NoFlow),
            },
        };
        // Held fragments came over the same link; read before the first one is rewritten.
        let link = LinkHeader::back(received.slot, received.frame.start);
        let mut lost = Lost::default();
        let release = self.parts.fragments.first(context.now, piece, destination, &mut lost);
        self.count_lost(lost);
        let verdict = self.forward(context, datagram, received, destination);
        self.release_held(context, release, destination, link);
        verdict
    }

    /// Where a datagram goes whose first fragment comes once more, in a service that schedules each
    /// datagram anew: with its other fragments. Elsewhere the flow table says so.
    fn destination_again<O: Outlet>(
        &self,
        context: &Context<'_, O>,
        piece: &Piece,
        incoming: &Incoming,
    ) -> Option<DestinationId> {
        let destination = self.parts.fragments.decided(context.now, piece)?;
        let FlowKey { vip, protocol, vip_port, .. } = incoming.key;
        let service = context.snapshot.services.find(vip, protocol, vip_port)?;
        let stays = service.one_packet && context.snapshot.destination(destination).is_some();
        stays.then_some(destination)
    }

    fn later_fragment<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        piece: &Piece,
        received: Received<'_>,
    ) -> Verdict {
        let mut lost = Lost::default();
        let fragments = &mut self.parts.fragments;
        let later = fragments.later(context.now, piece, received.packet(), &mut lost);
        self.count_lost(lost);
        match later {
            Later::Forward(destination) => self.forward(context, datagram, received, destination),
            Later::Held => Verdict::Hold,
            Later::Refused => Verdict::Drop(DropReason::FragmentOverflow),
        }
    }

    /// Sends what waited for its first fragment.
    fn release_held<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        release: Release,
        destination: DestinationId,
        link: LinkHeader,
    ) {
        // Taken out for the while, so that it is not borrowed from the director it works with.
        let mut staging = std::mem::take(&mut self.staging);
        while let Some(packet) = self.parts.fragments.release(release) {
            let received = Received::held(&mut staging, packet, &link);
            let verdict = match Datagram::parse(received.packet()) {
                Ok(datagram) => self.forward(context, &datagram, received, destination),
                // It was parsed when it was held.
                Err(error) => Verdict::Drop(error.into()),
            };
            let verdict = send_copy(context.outlet, verdict, &staging);
            self.parts.counters.worker.held.sub(1);
            self.account(&verdict);
        }
        self.staging = staging;
    }

    /// Lets go of datagrams whose fragments took too long.
    pub(super) fn expire_fragments(&mut self, now: Time) {
        let mut lost = Lost::default();
        self.parts.fragments.expire(now, &mut lost);
        self.count_lost(lost);
        if let Some(meeting) = self.parts.team.meeting() {
            let mut lost = Lost::default();
            meeting.expire(now, &mut lost);
            self.count_lost(lost);
        }
    }

    pub(super) fn count_lost(&self, lost: Lost) {
        let counters = &self.parts.counters;
        let (overflow, timeout) = (u64::from(lost.overflow), u64::from(lost.timeout));
        counters.worker.held.sub(overflow + timeout);
        counters.dropped(DropReason::FragmentOverflow).add(overflow);
        counters.dropped(DropReason::FragmentTimeout).add(timeout);
    }
}

/// Sends the range of `bytes` that the verdict names from an auxiliary slot.
pub(super) fn send_copy<O: Outlet>(outlet: &mut O, verdict: Verdict, bytes: &[u8]) -> Verdict {
    let (egress, range, account) = match &verdict {
        Verdict::Forward { egress, range } => (*egress, range.clone(), Account::Forward),
        Verdict::Reply { range, .. } => (EgressId::TAP, range.clone(), Account::Reply),
        Verdict::Fragmented
        | Verdict::Pass
        | Verdict::HandedOver
        | Verdict::Hold
        | Verdict::Drop(_) => return verdict,
    };
    let Some(scratch) = outlet.acquire() else {
        return Verdict::Drop(DropReason::NoScratch);
    };
    let Some(room) = outlet.bytes(&scratch).get_mut(..range.len()) else {
        outlet.release(scratch);
        return Verdict::Drop(DropReason::NoScratch);
    };
    room.copy_from_slice(&bytes[range.clone()]);
    outlet.send(scratch, egress, 0..range.len(), account);
    verdict
}
