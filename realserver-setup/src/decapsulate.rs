//! `adit-realserver decap`: the device, the host's settings, then packets.

use std::io::Write as _;
use std::time::{Duration, Instant};

use adit_io::{IoPreference, Tun};
use adit_realserver::decap::service::Service;
use adit_realserver::desired::Desired;
use adit_realserver::host::{self, HostError};
use adit_realserver::kernel::{DECAP, Device};
use adit_realserver::observed::Observed;
use anyhow::bail;

/// How long another run of this program is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How packets are received, by name.
pub(crate) fn engine(text: &str) -> Result<IoPreference, String> {
    match text {
        "auto" => Ok(IoPreference::Auto),
        "multishot" => Ok(IoPreference::Multishot),
        "poll" => Ok(IoPreference::Poll),
        _ => Err("one of auto, multishot, poll".to_owned()),
    }
}

/// Unwraps until it is told to stop. The device goes with this process, and the VIPs on it.
pub(crate) fn run(desired: Desired, io: IoPreference, json: bool) -> anyhow::Result<()> {
    let desired = desired.in_userspace()?;
    refuse_doubles(&host::look()?)?;
    let tun = Tun::open(DECAP)?;
    // Sockets first: what comes before the device is up waits in them, and the kernel refuses nothing
    // any more.
    let service = Service::open(&desired, &tun, io, json, tell)?;
    for note in prepare(&desired)? {
        tell(&note, false);
    }
    tun.set_up()?;
    tell(&format!("unwraps on {DECAP}: {}", service.description()), false);
    Ok(service.run()?)
}

/// Silences ARP, puts the VIPs on the device, lets directors in.
#[allow(
    clippy::disallowed_methods,
    reason = "another process is waited for, before there are packets"
)]
fn prepare(desired: &Desired) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match host::carry_out(Some(desired)) {
            Ok(done) => {
                let steps = done.steps.iter().filter(|step| step.changes_host());
                return Ok(steps.map(ToString::to_string).chain(done.notes).collect());
            }
            Err(HostError::Busy) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A device of the kernel that unwraps too would deliver each packet a second time.
fn refuse_doubles(observed: &Observed) -> anyhow::Result<()> {
    for device in Device::ALL {
        let name = device.name();
        let doubles = device.protocols().iter().any(|protocol| [4, 41].contains(protocol));
        if doubles && observed.links.get(name).is_some_and(|link| link.up) {
            bail!(
                "{name} is up and unwraps too, so that each packet would arrive twice: let the kernel do it \
                 (adit-realserver apply), or give that up first (adit-realserver remove)"
            );
        }
    }
    Ok(())
}

/// Lines go to standard error, counters as JSON to standard output.
fn tell(text: &str, counters: bool) {
    // Nobody reads: packets matter more.
    let _ = if counters {
        writeln!(std::io::stdout(), "{text}")
    } else {
        writeln!(std::io::stderr(), "adit-realserver: {text}")
    };
}
