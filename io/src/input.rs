//! What an engine takes frames from: one queue of a TAP, or tunnel sockets.

use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{opcode, squeue, types};
use nix::errno::Errno;

use super::buffer_ring::BUFFER_GROUP;
use super::engine_error::EngineError;
use super::handler::Source;
use super::tunnel_socket::TunnelSocket;

/// Fixed file 0 of a director's ring is the TAP.
const TAP: types::Fixed = types::Fixed(0);

/// A descriptor that frames come from.
#[derive(Debug)]
pub(super) enum Input {
    /// A TAP's queue, which is fixed file 0 too.
    Tap(OwnedFd),
    /// A raw socket.
    Tunnel(TunnelSocket),
}

impl Input {
    /// What the handler is told of its frames.
    pub(super) fn source(&self) -> Source {
        match self {
            Self::Tap(_) => Source::Tap,
            Self::Tunnel(_) => Source::Tunnel,
        }
    }

    /// Reads once, without waiting; returns how many bytes of `room` were written.
    pub(super) fn read(&self, room: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Tap(queue) => nix::unistd::read(queue, room),
            Self::Tunnel(socket) => socket.receive(room),
        }
    }

    /// Where the frame is in the first `length` bytes of what was read.
    pub(super) fn frame(&self, bytes: &mut [u8], length: usize) -> Range<usize> {
        match self {
            Self::Tap(_) => 0..length,
            Self::Tunnel(socket) => socket.packet(bytes, length),
        }
    }

    /// A request for one completion when there is something to read.
    pub(super) fn poll(&self) -> squeue::Entry {
        let events = libc::POLLIN as u32; // 1
        match self {
            Self::Tap(_) => opcode::PollAdd::new(TAP, events).build(),
            Self::Tunnel(socket) => {
                opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), events).build()
            }
        }
    }

    /// A request for a completion for each frame. It may point to memory of this input.
    pub(super) fn read_multishot(&self) -> squeue::Entry {
        match self {
            // Length 0: as long as the buffer. The crate overwrites the flag that it sets for a fixed
            // file (io-uring 0.7.15), so it is set again here.
            Self::Tap(_) => opcode::ReadMulti::new(TAP, 0, BUFFER_GROUP)
                .build()
                .flags(squeue::Flags::FIXED_FILE | squeue::Flags::BUFFER_SELECT),
            Self::Tunnel(socket) => {
                let file = types::Fd(socket.as_raw_fd());
                opcode::RecvMsgMulti::new(file, socket.wanted(), BUFFER_GROUP).build()
            }
        }
    }

    /// Whether there may be more to read after this error.
    ///
    /// # Errors
    /// When there will not.
    pub(super) fn survives(&self, errno: Errno) -> Result<(), EngineError> {
        match (self, errno) {
            (Self::Tap(_), errno) => Err(EngineError::TapGone(errno)),
            // A socket reports each once, and goes on: what an interface or a peer said, and memory
            // that was short.
            (
                Self::Tunnel(_),
                Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::EHOSTUNREACH
                | Errno::EHOSTDOWN
                | Errno::ECONNREFUSED
                | Errno::EPROTO
                | Errno::EMSGSIZE
                | Errno::ENOMEM,
            ) => Ok(()),
            (Self::Tunnel(_), errno) => Err(EngineError::SocketGone(errno)),
        }
    }
}
