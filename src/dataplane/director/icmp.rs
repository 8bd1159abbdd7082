//! ICMP messages to a VIP: echo is answered, errors go to the real server that owns the flow.

use super::{
    super::{
        conntrack::Slot,
        icmp::{self, ErrorMessage, Message},
        packet::Datagram,
        rate_limit::Emission,
        reply,
        verdict::{DropReason, Outlet, Verdict},
    },
    Context, Director, LinkHeader, Received, balance,
};

impl<S: AsRef<[Slot]>> Director<S> {
    /// An unfragmented ICMP message to a VIP.
    pub(super) fn icmp<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        received: Received<'_>,
    ) -> Verdict {
        match icmp::classify(datagram, received.packet()) {
            Ok(Message::EchoRequest) => self.echo(context, datagram, received),
            Ok(Message::Error(error)) => {
                self.client_path_error(context, datagram, received, &error)
            }
            Ok(Message::Unsupported) => Verdict::Drop(DropReason::IcmpUnsupported),
            Err(reason) => Verdict::Drop(reason),
        }
    }

    fn echo<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        received: Received<'_>,
    ) -> Verdict {
        if !self.parts.emit_limits.allow(context.now, Emission::EchoReply, &datagram.source) {
            return Verdict::Drop(DropReason::EmitRateLimited);
        }
        let link = LinkHeader::back(received.slot, received.frame.start);
        let Received { slot, ip, .. } = received;
        let range = reply::echo_reply(slot, datagram, ip);
        self.parts.counters.worker.echo_answers.add(1);
        link.reply(slot, range)
    }

    /// An error about a packet that a real server sent to a client: it quotes VIP → client.
    fn client_path_error<O: Outlet>(
        &mut self,
        context: &mut Context<'_, O>,
        datagram: &Datagram,
        received: Received<'_>,
        error: &ErrorMessage,
    ) -> Verdict {
        let quoted = &received.packet()[error.quote_offset..];
        if error.quote.source != datagram.destination {
            return Verdict::Drop(DropReason::IcmpNoFlow);
        }
        let owner = balance::reply_key(context.snapshot, &error.quote, quoted).and_then(|key| {
            let owner = self.owner(context, &key, &datagram.destination);
            owner.or_else(|| context.snapshot.probes.answered_by(&key))
        });
        let Some(destination) = owner else {
            return Verdict::Drop(DropReason::IcmpNoFlow);
        };
        self.parts.counters.worker.icmp_forwarded.add(1);
        self.forward(context, datagram, received, destination)
    }
}
