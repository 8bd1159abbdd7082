//! The packet loop of `adit-realserver decap`.

use std::ops::Range;
use std::time::Duration;

use adit_io::{
    AuxSlots, Disposition, EgressControl, EgressId, Engine, EngineConfig, EngineError, Errno,
    Handler, IoCounters, IoPreference, Losses, OffloadHeader, OuterVersion, Presence, Source, Tun,
    TunnelSocket, TunnelSocketError, Waker, choose_for_tunnels, give_up_capabilities,
};
use adit_tunnel::ecn::Alarm;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::rules::{Rules, Verdict};
use super::tally::Tally;
use crate::desired::Desired;
use crate::firewall::Entrance;
use crate::kernel::Version;

/// Slots, of 64 kB each since the kernel may have put segments together: 17 MB, of which small packets
/// touch a megabyte.
const SLOTS: usize = 256;

/// How often a line tells of losses.
const REPORT: Duration = Duration::from_secs(60);

/// How often the device and the watchdog are looked after.
const LOOK: Duration = Duration::from_secs(1);

/// Why packets are not unwrapped, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] TunnelSocketError),
    /// No packet loop.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Something small.
    #[error("{action}: {errno}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Somebody has deleted the TUN device.
    #[error("the device is gone: somebody has deleted it")]
    DeviceGone,
}

fn system(action: &'static str) -> impl FnOnce(Errno) -> ServiceError {
    move |errno| ServiceError::System { action, errno }
}

/// Everything that is allocated and opened before packets are let in.
pub struct Service {
    engine: Engine,
    unwrapper: Unwrapper,
    /// Engine and sockets, for the log.
    description: String,
}

impl Service {
    /// Opens sockets for what directors send, and takes over the signals SIGTERM, SIGINT and SIGUSR1 of
    /// this thread. Packets that arrive from now on wait.
    ///
    /// `tell` is given a line and whether it is the JSON of counters.
    ///
    /// # Errors
    /// See [`ServiceError`].
    pub fn open(
        desired: &Desired,
        tun: &Tun,
        preference: IoPreference,
        json: bool,
        tell: fn(&str, bool),
    ) -> Result<Self, ServiceError> {
        let mut wanted = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1] {
            wanted.add(signal);
        }
        wanted.thread_block().map_err(system("block signals"))?;
        let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(system("signalfd"))?;

        let mut sockets = Vec::new();
        let mut losses = Vec::new();
        for entrance in desired.entrances() {
            // Other tunnels were refused by `Desired::in_userspace`.
            let Entrance::Protocol(version, protocol) = entrance else { continue };
            let outer = match version {
                Version::V4 => OuterVersion::V4,
                Version::V6 => OuterVersion::V6,
            };
            let socket = TunnelSocket::open(outer, protocol)?;
            losses.push(socket.losses().map_err(system("duplicate a socket"))?);
            sockets.push(socket);
        }
        let count = sockets.len();
        let choice = choose_for_tunnels(preference)?;
        let waker = Waker::new().map_err(system("eventfd"))?;
        let config =
            EngineConfig { slots: SLOTS, aux_slots: 0, ..EngineConfig::new(choice.engine, waker) };
        let engine = Engine::between(sockets, tun, config)?;
        let unwrapper = Unwrapper {
            rules: Rules::new(desired.directors(), desired.vips()),
            tally: Tally::default(),
            told: Tally::default(),
            signals,
            presence: tun.presence().map_err(system("duplicate the device"))?,
            losses,
            json,
            tell,
            next_look: 0,
            next_report: None,
            end: None,
        };
        let description = format!(
            "{count} sockets, engine {} ({}), {}",
            choice.engine,
            choice.reason,
            engine.setup()
        );
        Ok(Self { engine, unwrapper, description })
    }

    /// How packets come and go, for the log.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Gives up the rights of root, tells systemd that all is ready, and unwraps until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// When something that it cannot go on without is gone.
    pub fn run(mut self) -> Result<(), ServiceError> {
        give_up_capabilities().map_err(system("give up capabilities"))?;
        notify(&[sd_notify::NotifyState::Ready]);
        let result = self.engine.run(&mut self.unwrapper);
        notify(&[sd_notify::NotifyState::Stopping]);
        self.unwrapper.count_losses();
        self.unwrapper.tell_all();
        result?;
        match self.unwrapper.end {
            Some(End::DeviceGone) => Err(ServiceError::DeviceGone),
            Some(End::Asked) | None => Ok(()),
        }
    }
}

/// Where systemd did not start this, nobody listens.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    let _ = sd_notify::notify(false, states);
}

#[derive(Clone, Copy, Debug)]
enum End {
    Asked,
    DeviceGone,
}

/// Unwraps packets, and looks after itself in between.
struct Unwrapper {
    rules: Rules,
    tally: Tally,
    /// The counters that were told of last.
    told: Tally,
    signals: SignalFd,
    presence: Presence,
    losses: Vec<Losses>,
    json: bool,
    tell: fn(&str, bool),
    /// Times in nanoseconds since the boot.
    next_look: u64,
    next_report: Option<u64>,
    end: Option<End>,
}

fn later(now_ns: u64, interval: Duration) -> u64 {
    now_ns.saturating_add(u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX))
}

impl Unwrapper {
    fn listen(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo == Signal::SIGUSR1 as u32 {
                self.count_losses();
                self.tell_all();
            } else {
                self.end = Some(End::Asked);
            }
        }
    }

    fn count_losses(&mut self) {
        // A socket that cannot be asked has lost nothing that is known.
        let counts = self.losses.iter().filter_map(|socket| socket.count().ok());
        self.tally.overflowed = counts.map(u64::from).sum();
    }

    fn tell_all(&mut self) {
        if self.json {
            (self.tell)(&self.tally.json().to_string(), true);
        } else {
            (self.tell)(&self.tally.line(), false);
        }
    }

    fn look(&mut self) {
        notify(&[sd_notify::NotifyState::Watchdog]);
        if self.end.is_none() && !self.presence.is_there() {
            self.end = Some(End::DeviceGone);
        }
    }

    fn report(&mut self) {
        self.count_losses();
        if let Some(lost) = self.tally.lost_since(&self.told) {
            (self.tell)(&format!("lost within the last minute: {lost}"), false);
        }
        self.told = self.tally;
    }
}

impl Handler for Unwrapper {
    fn batch(&mut self, _: u64, _: &mut EgressControl<'_>) {}

    fn frame(
        &mut self,
        _: Source,
        slot: &mut [u8],
        frame: Range<usize>,
        _: &mut AuxSlots,
    ) -> Disposition {
        self.tally.received += 1;
        let (inner, offload, alarm) = match self.rules.judge(&mut slot[frame.clone()]) {
            Verdict::Deliver { inner, offload, alarm } => (inner, offload, alarm),
            Verdict::Drop(reason) => {
                self.tally.drop(reason);
                return Disposition::Release;
            }
        };
        self.tally.odd_marks += u64::from(alarm != Alarm::None);
        // The outer header, of 20 bytes at least, and the headroom give way to the device's.
        let start = frame.start + inner.start - OffloadHeader::LENGTH;
        slot[start..][..OffloadHeader::LENGTH].copy_from_slice(&offload.bytes());
        let token = u32::try_from(inner.len()).unwrap_or_default();
        Disposition::Send { egress: EgressId::TUN, range: start..frame.start + inner.end, token }
    }

    fn sent(&mut self, token: u32, result: Result<(), Errno>) {
        match result {
            Ok(()) => {
                self.tally.delivered += 1;
                self.tally.bytes += u64::from(token);
            }
            Err(_) => self.tally.refused += 1,
        }
    }

    fn tick(&mut self, now_ns: u64, _: &mut AuxSlots, _: &IoCounters) {
        self.listen();
        if now_ns >= self.next_look {
            self.next_look = later(now_ns, LOOK);
            self.look();
        }
        let due = self.next_report.get_or_insert(later(now_ns, REPORT));
        if now_ns >= *due {
            *due = later(now_ns, REPORT);
            self.report();
        }
    }

    fn stop_requested(&self) -> bool {
        self.end.is_some()
    }
}
