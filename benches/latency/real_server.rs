//! The real server: a thread that takes the tunnel's header away, if there is one, swaps addresses and
//! ports, and gives the packet to the client.

use std::os::fd::OwnedFd;

use adit::io::Tap;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{read, write};

use crate::rig::BACK_MAC;

const ETHERNET_HEADER: usize = 14;
const IPV4_HEADER: usize = 20;
const IPIP: u8 = 4;
const UDP: u8 = 17;

/// Starts it; it runs until the process ends.
pub fn start(real: Tap, back: Tap) -> Result<()> {
    let incoming = blocking(&real)?;
    let outgoing = blocking(&back)?;
    std::thread::Builder::new().name("real server".into()).spawn(move || {
        // The devices live as long as these.
        let _devices = (real, back);
        serve(&incoming, &outgoing);
    })?;
    Ok(())
}

/// A descriptor of the TAP whose reads wait.
fn blocking(tap: &Tap) -> Result<OwnedFd> {
    let fd = std::os::fd::AsFd::as_fd(tap).try_clone_to_owned()?;
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).context("a blocking TAP")?;
    Ok(fd)
}

fn serve(incoming: &OwnedFd, outgoing: &OwnedFd) {
    let mut frame = [0; 2048];
    loop {
        match read(incoming, &mut frame) {
            Ok(length) => {
                if let Some(start) = answer(&mut frame[..length]) {
                    // A client that is gone gets no answer, which the bench notices.
                    let _ = write(outgoing, &frame[start..length]);
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Makes the answer out of the question, and says where in the frame its own frame begins.
fn answer(frame: &mut [u8]) -> Option<usize> {
    let is_ipv4 = frame.get(12..14)? == [0x08, 0x00];
    let outer = ETHERNET_HEADER;
    let wrapped = is_ipv4 && *frame.get(outer + 9)? == IPIP;
    let inner = if wrapped { outer + IPV4_HEADER } else { outer };
    let packet = frame.get_mut(inner..)?;
    if !is_ipv4 || packet.len() < IPV4_HEADER + 8 || packet[0] != 0x45 || packet[9] != UDP {
        return None;
    }
    // Sums do not mind the order.
    let (source, destination) = packet[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    let (source, destination) = packet[20..24].split_at_mut(2);
    source.swap_with_slice(destination);
    let start = inner - ETHERNET_HEADER;
    frame[start..start + 6].copy_from_slice(&BACK_MAC);
    frame[start + 6..start + 12].copy_from_slice(&[2, 0, 0, 0, 0, 8]);
    frame[start + 12..inner].copy_from_slice(&[0x08, 0x00]);
    Some(start)
}
