//! Into the tunnel: hop limit, path MTU, outer headers, link header. In direct mode the last of them
//! alone.

use std::ops::Range;

use adit_tunnel::{
    EncapError, HopLimitError, OuterFields, OuterTemplate, decrement_hop_limit, fragment,
};

use super::{
    super::{
        conntrack::Slot,
        ids::DestinationId,
        packet::{self, Datagram, Family},
        path_mtu, reply,
        service::DfPolicy,
        snapshot::{Destination, Link, RealServer},
        spread::spread,
        verdict::{Account, DropReason, EgressId, HEADROOM, Outlet, Verdict},
    },
    Context, Director, Received,
};

/// The smallest MTU of an IPv6 link (RFC 8200 §5): no IPv6 packet of that size may be refused.
const IPV6_MINIMUM_MTU: usize = 1280;

/// For [`Director::forward_as`]: a packet is a client's, and counts as traffic of a service.
const SERVICE: bool = false;
/// It is the director's own, to see how a real server does.
pub(super) const CHECK: bool = true;

/// What becomes of a packet, seen from the path MTU.
enum Fit {
    /// One outer packet.
    Whole,
    /// Several outer packets.
    Fragment,
    /// The sender is told to send no more than this.
    TooBig(u16),
}

/// Decides whether an inner packet fits a path of `mtu` bytes with `overhead` (RFC 2003 §5.1,
/// RFC 2473 §7).
fn fit(datagram: &Datagram, df: DfPolicy, overhead: usize, mtu: u16) -> Fit {
    if datagram.total_len + overhead <= usize::from(mtu) {
        return Fit::Whole;
    }
    let inner_mtu = usize::from(mtu).saturating_sub(overhead);
    let inner_mtu = match datagram.family {
        Family::V4 if !datagram.dont_fragment || df == DfPolicy::Clear => return Fit::Fragment,
        Family::V4 => inner_mtu,
        Family::V6 if datagram.total_len <= IPV6_MINIMUM_MTU || df == DfPolicy::Clear => {
            return Fit::Fragment;
        }
        Family::V6 => inner_mtu.max(IPV6_MINIMUM_MTU),
    };
    Fit::TooBig(u16::try_from(inner_mtu).unwrap_or(u16::MAX))
}

/// The same for a packet that goes on unwrapped, as a router decides it.
fn fit_unwrapped(datagram: &Datagram, mtu: u16) -> Fit {
    if datagram.total_len <= usize::from(mtu) {
        Fit::Whole
    } else if datagram.dont_fragment {
        // IPv6 always does.
        Fit::TooBig(mtu)
    } else {
        Fit::Fragment
    }
}

impl<S: AsRef<[Slot]>> Director<S> {
    /// Sends a received packet to a destination, or answers that it is too big for the way.
    pub(super) fn forward<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        received: Received<'_>,
        id: DestinationId,
    ) -> Verdict {
        self.forward_as::<O, SERVICE>(context, datagram, received, id)
    }

    /// The same, counted as what it is. Each kind has code of its own, so that clients' packets pay
    /// nothing for checks.
    pub(super) fn forward_as<O: Outlet, const KIND: bool>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        received: Received<'_>,
        id: DestinationId,
    ) -> Verdict {
        let snapshot = context.snapshot;
        let Some(destination) = snapshot.destination(id) else {
            return Verdict::Drop(DropReason::NoEgress);
        };
        let Some(real) = snapshot.real(destination.real) else {
            return Verdict::Drop(DropReason::NoEgress);
        };
        if real.link == Link::None {
            // Before anything is said of its path: a route that is gone has no MTU.
            return Verdict::Drop(DropReason::NoEgress);
        }
        let overhead = real.outers.overhead();
        let mtu = self.parts.path_mtus.mtu(context.now, destination.real, real.link_mtu);
        // An expired hop limit is answered before a packet too big: routers look at it first.
        if snapshot.decrement_hop_limit {
            let packet = &mut received.slot[received.ip.clone()];
            match decrement_hop_limit(packet) {
                Ok(_) => {}
                Err(HopLimitError::Expired) => {
                    let kind = reply::ErrorReply::TimeExceeded;
                    let otherwise = DropReason::HopLimitExceeded;
                    return self.reply_error(context, datagram, received, kind, otherwise);
                }
                Err(HopLimitError::Header(_)) => return Verdict::Drop(DropReason::Malformed),
            }
        }
        let fit = match real.link {
            // Adit is a router there, and no tunnel's entry: it may not undo a sender's DF.
            Link::Segment { .. } => fit_unwrapped(datagram, mtu),
            // The kernel fragments there, when it knows what encryption adds.
            Link::Protected { .. } => match fit(datagram, destination.df, overhead, mtu) {
                Fit::Fragment | Fit::Whole => Fit::Whole,
                Fit::TooBig(mtu) => Fit::TooBig(mtu),
            },
            Link::Direct { .. } | Link::Kernel { .. } | Link::None => {
                fit(datagram, destination.df, overhead, mtu)
            }
        };
        match fit {
            Fit::Whole => {
                let Received { slot, ip, .. } = received;
                let outcome = self.wrap(destination, real, datagram, slot, ip);
                self.count_forwarded::<_, KIND>(id, datagram, &outcome);
                match outcome {
                    Ok((egress, range)) => Verdict::Forward { egress, range },
                    Err(reason) => Verdict::Drop(reason),
                }
            }
            Fit::TooBig(mtu) => {
                let kind = reply::ErrorReply::TooBig { mtu };
                self.reply_error(context, datagram, received, kind, DropReason::PacketTooBig)
            }
            Fit::Fragment => {
                let Received { slot, ip, .. } = received;
                let outcome = self.in_pieces(context, destination, real, datagram, mtu, slot, ip);
                self.count_forwarded::<_, KIND>(id, datagram, &outcome);
                outcome.map_or_else(Verdict::Drop, |()| Verdict::Fragmented)
            }
        }
    }

    fn count_forwarded<T, const KIND: bool>(
        &self,
        id: DestinationId,
        datagram: &Datagram,
        outcome: &Result<T, DropReason>,
    ) {
        if outcome.is_err() {
            return;
        }
        if KIND == CHECK {
            self.parts.counters.worker.probe_packets.add(1);
            return;
        }
        let bytes = datagram.total_len as u64;
        self.parts.counters.worker.received_bytes.add(bytes);
        if let Some(counters) = self.parts.counters.traffic.get(id.index()) {
            counters.packets.add(1);
            counters.bytes.add(bytes);
        }
    }

    /// Writes outer headers and link header in front of `slot[ip]`, where the link wants them.
    pub(super) fn wrap(
        &mut self,
        destination: &Destination,
        real: &RealServer,
        datagram: &Datagram,
        slot: &mut [u8],
        ip: Range<usize>,
    ) -> Result<(EgressId, Range<usize>), DropReason> {
        if let Link::Protected { ipv4, ipv6 } = real.link {
            let egress = if datagram.family == Family::V4 { ipv4 } else { ipv6 };
            return Ok((egress, ip));
        }
        let packet = &slot[ip.clone()];
        let Some((template, spread)) = real.outers.of_flow(|| spread(datagram, packet)) else {
            let (egress, start) = link_header(real, slot, ip.start, datagram.family)?;
            return Ok((egress, start..ip.end));
        };
        let dont_fragment = datagram.dont_fragment && destination.df == DfPolicy::Copy;
        let outer =
            OuterFields { dont_fragment, entropy: low_half(spread), ..OuterFields::default() };
        let start = template
            .encapsulate_with(slot, ip.clone(), outer, |payload| {
                if dont_fragment {
                    path_mtu::cookie(payload, real.cookie_secrets[0])
                } else {
                    low_half(self.parts.path_mtus.next_identification(destination.real))
                }
            })
            .map_err(|error| encapsulation_drop(&error))?;
        let (egress, start) = link_header(real, slot, start, template_family(template))?;
        Ok((egress, start..ip.end))
    }

    /// Wraps `slot[ip]`, then sends the outer packet in pieces of at most `mtu` bytes
    /// (RFC 2003 §5.1, RFC 2473 §7.2), each in an auxiliary slot. In direct mode the packet itself
    /// is what is cut, as a router does it (RFC 1812 §4.2.2.7).
    #[expect(clippy::too_many_arguments, reason = "a packet, where it is, and where it goes")]
    fn in_pieces<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        destination: &Destination,
        real: &RealServer,
        datagram: &Datagram,
        mtu: u16,
        slot: &mut [u8],
        ip: Range<usize>,
    ) -> Result<(), DropReason> {
        let packet = &slot[ip.clone()];
        let outer = real.outers.of_flow(|| spread(datagram, packet));
        let (start, family, identification) = match outer {
            Some((template, spread)) => {
                let identification = self.parts.path_mtus.next_identification(destination.real);
                let outer = OuterFields {
                    identification: low_half(identification),
                    entropy: low_half(spread),
                    ..OuterFields::default()
                };
                let start = template
                    .encapsulate(slot, ip.clone(), outer)
                    .map_err(|error| encapsulation_drop(&error))?;
                (start, template_family(template), identification)
            }
            None => (ip.start, datagram.family, packet::ipv4_identification(packet).into()),
        };
        let outer_packet = &slot[start..ip.end];
        let pieces =
            fragment::plan(outer_packet, usize::from(mtu)).map_err(|_| DropReason::PacketTooBig)?;
        for piece in pieces {
            let scratch = context.outlet.acquire().ok_or(DropReason::NoScratch)?;
            let out = context.outlet.bytes(&scratch);
            let written = out
                .get_mut(HEADROOM..)
                .ok_or(DropReason::NoScratch)
                .and_then(|room| {
                    fragment::fragment_into(outer_packet, piece, room, identification)
                        .map_err(|_| DropReason::NoScratch)
                })
                .and_then(|length| {
                    let (egress, start) = link_header(real, out, HEADROOM, family)?;
                    Ok((egress, start..HEADROOM + length))
                });
            match written {
                Ok((egress, range)) => {
                    let account = if piece.more { Account::Extra } else { Account::Forward };
                    context.outlet.send(scratch, egress, range, account);
                }
                Err(reason) => {
                    context.outlet.release(scratch);
                    return Err(reason);
                }
            }
        }
        self.parts.counters.worker.fragmented.add(1);
        Ok(())
    }
}

/// Writes the link header in front of the packet that starts at `start` and is of `family`.
fn link_header(
    real: &RealServer,
    slot: &mut [u8],
    start: usize,
    family: Family,
) -> Result<(EgressId, usize), DropReason> {
    match &real.link {
        Link::Segment { egress, macs } => {
            let link = start.checked_sub(packet::ETHERNET_HEADER).ok_or(DropReason::NoEgress)?;
            let ethertype = match family {
                Family::V4 => packet::ETHERTYPE_IPV4,
                Family::V6 => packet::ETHERTYPE_IPV6,
            };
            slot[link..link + macs.len()].copy_from_slice(macs);
            slot[link + macs.len()..start].copy_from_slice(&ethertype.to_be_bytes());
            Ok((*egress, link))
        }
        Link::Direct { egress, header } => {
            let link = start.checked_sub(packet::ETHERNET_HEADER).ok_or(DropReason::NoEgress)?;
            slot[link..start].copy_from_slice(header);
            Ok((*egress, link))
        }
        Link::Kernel { egress } => Ok((*egress, start)),
        // Both are met before there is an outer header.
        Link::Protected { .. } | Link::None => Err(DropReason::NoEgress),
    }
}

const fn template_family(template: &OuterTemplate) -> Family {
    if template.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// What a field of 16 bits has room for.
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
const fn low_half(identification: u32) -> u16 {
    identification as u16
}

const fn encapsulation_drop(error: &EncapError) -> DropReason {
    match error {
        EncapError::FromTunnelExit => DropReason::BadSource,
        EncapError::OutOfBuffer { .. } | EncapError::Headroom { .. } => DropReason::NoEgress,
        EncapError::Inner(_) | EncapError::TrailingBytes { .. } => DropReason::Malformed,
        EncapError::TooLong { .. } => DropReason::PacketTooBig,
    }
}
