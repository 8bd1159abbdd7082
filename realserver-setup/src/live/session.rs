//! Listens to what passes, and answers a director that asks for bytes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::evidence::Evidence;
use super::sniffer::Sniffer;
use super::talk::{self, Heard};
use super::watch::Watch;
use crate::desired::Desired;

/// How soon it is looked whether all was seen, when no packet wakes this.
const LOOK: Duration = Duration::from_millis(100);
/// Packets that are looked at before connections are taken: a busy host must not starve those.
const AT_A_TIME: usize = 4096;
/// Conversations at a time. A probe has two, and several services and directors may ask.
const CONVERSATIONS: usize = 64;
/// Where the kernel counts what the reverse-path filter drops.
const COUNTERS: &str = "/proc/net/netstat";

/// Why it cannot be listened.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// Packets cannot be seen.
    #[error("cannot look at packets: {0}; run this as root")]
    Packets(io::Error),
    /// Another program has the port.
    #[error("cannot listen on {address}: {source}; choose another --port, here and in adit probe")]
    Listen {
        /// VIP and port.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be waited for news.
    #[error("cannot wait for packets: {0}")]
    Wait(io::Error),
}

/// Listens for `time` at most, and ends before when a whole exchange was seen of every VIP. Calls `ready`
/// once nothing can be missed any more.
///
/// # Errors
/// When it cannot be listened.
#[allow(clippy::disallowed_methods, reason = "this is the shell: it listens for so long")]
pub fn run(
    desired: &Desired,
    port: u16,
    time: Duration,
    ready: impl FnOnce(),
) -> Result<Evidence, LiveError> {
    // Before anybody can connect, so that nothing of it is missed.
    let mut sniffer = Sniffer::open().map_err(LiveError::Packets)?;
    let listeners = listen(desired.vips(), port)?;
    let mut watch = Watch::new(desired.vips(), desired.directors(), desired.gue_port(), port);
    let drops = reverse_path_drops();
    let (tell, heard) = channel();
    // Each conversation holds one, and one is here.
    let room = Arc::new(());
    ready();
    let until = Instant::now() + time;
    while Instant::now() < until && !watch.is_whole() {
        wait(&sniffer, &listeners)?;
        sniffer.look(AT_A_TIME, |passing| watch.passes(passing)).map_err(LiveError::Packets)?;
        for listener in &listeners {
            accept(listener, &watch, &tell, &room);
        }
        note(&mut watch, &heard);
    }
    watch.missed(sniffer.missed());
    watch.reverse_path_drops(reverse_path_drops().saturating_sub(drops));
    Ok(watch.evidence().clone())
}

fn note(watch: &mut Watch, heard: &Receiver<Heard>) {
    for news in heard.try_iter() {
        watch.heard(news);
    }
}

/// Listens on every VIP that this host has; one that it lacks is a finding, no error.
fn listen(vips: &BTreeSet<IpAddr>, port: u16) -> Result<Vec<TcpListener>, LiveError> {
    let mut listeners = Vec::new();
    for &vip in vips {
        let address = SocketAddr::new(vip, port);
        let listening = TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        match listening {
            Ok(listener) => listeners.push(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(source) => return Err(LiveError::Listen { address, source }),
        }
    }
    Ok(listeners)
}

fn wait(sniffer: &Sniffer, listeners: &[TcpListener]) -> Result<(), LiveError> {
    let sockets = listeners.iter().map(AsFd::as_fd).chain([sniffer.as_fd()]);
    let mut sockets: Vec<_> =
        sockets.map(|socket| PollFd::new(socket, PollFlags::POLLIN)).collect();
    let time = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
    match poll(&mut sockets, time) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(LiveError::Wait(error.into())),
    }
}

/// Takes connections, each in a thread of its own.
fn accept(listener: &TcpListener, watch: &Watch, tell: &Sender<Heard>, room: &Arc<()>) {
    // Whoever gave up meanwhile is not there any more; nothing else fails here.
    while let Ok((stream, from)) = listener.accept() {
        let Ok(to) = stream.local_addr() else { continue };
        let busy = Arc::strong_count(room) > CONVERSATIONS;
        if busy || !watch.may_ask(from, to) || stream.set_nonblocking(false).is_err() {
            continue;
        }
        let (tell, held) = (tell.clone(), Arc::clone(room));
        std::thread::spawn(move || {
            converse(&stream, to.ip(), &tell);
            drop(held);
        });
    }
}

fn converse(stream: &TcpStream, vip: IpAddr, tell: &Sender<Heard>) {
    // What came of it was told, and what breaks off shows by what was not.
    let _ = talk::answer(stream, vip, tell);
}

/// Packets that the reverse-path filter has dropped since boot; 0 where the kernel does not say.
fn reverse_path_drops() -> u64 {
    fs::read_to_string(COUNTERS).ok().and_then(|text| counter(&text)).unwrap_or(0)
}

/// `IPReversePathFilter` of `TcpExt`: a line of names, and one of values.
fn counter(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(name, _)| *name == "IPReversePathFilter")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counter_is_found_by_its_name() {
        let text = "TcpExt: SyncookiesSent IPReversePathFilter TW\nTcpExt: 1 42 3\n\
                    IpExt: InNoRoutes\nIpExt: 7\n";
        assert_eq!(counter(text), Some(42));
        assert_eq!(counter("TcpExt: A\nTcpExt: 1\n"), None);
        assert_eq!(counter(""), None);
        let here = fs::read_to_string(COUNTERS).unwrap();
        assert!(counter(&here).is_some(), "this kernel has it: {here}");
    }
}
