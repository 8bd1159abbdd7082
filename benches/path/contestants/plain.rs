//! The loop that does nothing else: read, wrap, send; two system calls a packet.

use std::os::fd::{AsRawFd, OwnedFd};

use adit::io::Tap;
use anyhow::Result;
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::read;

use super::{blocking_tap, open_exit};
use crate::wrap::{Exit, ROOM, Wrapper};

pub(super) fn run(tap: &Tap, exit: Exit) -> Result<()> {
    let tap = blocking_tap(tap)?;
    let socket: OwnedFd = open_exit(exit)?.into();
    let wrapper = Wrapper::new(exit);
    let mut slot = [0; 2048];
    loop {
        let length = read(&tap, &mut slot[ROOM..])?;
        if let Some(range) = wrapper.wrap(&mut slot, ROOM..ROOM + length) {
            // A full queue loses the packet; the sink's count shows it.
            let _ = send(socket.as_raw_fd(), &slot[range], MsgFlags::MSG_DONTWAIT);
        }
    }
}
