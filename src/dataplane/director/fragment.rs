//! Fragments
use super::{
    super::{
        conntrack::Slot,
        ids::VipId,
        packet::Datagram,
        verdict::{DropReason, Outlet, Verdict},
    },
    Context, Director, Received,
};
impl<S: AsRef<[Slot]>> Director<S> {
    pub(super) fn fragment<O: Outlet>(
        &mut self,
        _c: &mut Context<'_, O>,
        _d: &Datagram,
        _vip: VipId,
        _r: Received<'_>,
    ) -> Verdict {
        Verdict::Drop(DropReason::FragmentOverflow)
    }
    pub(super) fn expire_fragments<O: Outlet>(&mut self, _c: &mut Context<'_, O>) {}
}
