//! Adit's packet loop with a handler that only wraps: what the rest of the director adds is the
//! difference to the whole one.

use std::ops::Range;

use adit::io::{
    AuxSlots, Disposition, EgressControl, EgressId, Engine, EngineConfig, EngineKind, Errno,
    Handler, IoCounters, OpenEgress, Source, Tap, Waker,
};
use anyhow::Result;

use super::open_exit;
use crate::wrap::{Exit, Wrapper};

const PATH: EgressId = EgressId(1);

struct WrapOnly {
    wrapper: Wrapper,
    path: Option<OpenEgress>,
    completed: u64,
}

impl Handler for WrapOnly {
    fn batch(&mut self, _: u64, egress: &mut EgressControl<'_>) {
        if let Some(path) = self.path.take() {
            egress.install(PATH, path).expect("a path below the limit, on a live ring");
        }
    }

    fn frame(
        &mut self,
        _: Source,
        slot: &mut [u8],
        frame: Range<usize>,
        _: &mut AuxSlots,
    ) -> Disposition {
        match self.wrapper.wrap(slot, frame) {
            Some(range) => Disposition::Send { egress: PATH, range, token: 0 },
            None => Disposition::Release,
        }
    }

    fn sent(&mut self, _: u32, _: Result<(), Errno>) {
        self.completed += 1;
    }

    fn tick(&mut self, _: u64, _: &mut AuxSlots, _: &IoCounters) {}

    fn stop_requested(&self) -> bool {
        false
    }
}

pub(super) fn run(tap: &Tap, kind: EngineKind, exit: Exit) -> Result<()> {
    let mut engine = Engine::build(tap, EngineConfig::new(kind, Waker::new()?))?;
    let mut handler =
        WrapOnly { wrapper: Wrapper::new(exit), path: Some(open_exit(exit)?), completed: 0 };
    engine.run(&mut handler)?;
    Ok(())
}
