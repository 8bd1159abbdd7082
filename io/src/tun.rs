//! A TUN device: packets that are written to it are received by this host.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::interface::{Interface, request_for};
use super::tap::{DriverFlags, TapError, attach_queue, patiently};

/// An open, non-persistent TUN device without a hardware address: it is gone when this is dropped, or
/// the process dies. It is written to only; what the host sends into it is lost.
#[derive(Debug)]
pub struct Tun {
    device: OwnedFd,
    name: String,
}

impl Tun {
    /// Creates the device, down.
    ///
    /// Waits up to two seconds for one that is in use, as [`super::Tap::open`] does.
    ///
    /// # Errors
    /// Driver or privilege missing, device in use or of another kind.
    pub fn open(name: &str) -> Result<Self, TapError> {
        patiently(|| {
            let device = attach_queue(name, DriverFlags::TUN_WITH_OFFLOAD_HEADERS)?;
            let interface = Interface::named(name)?;
            // Nobody reads what is sent into it; no more of it than this is kept.
            interface.set_queue_length(1)?;
            Ok(Self { device, name: name.to_owned() })
        })
    }

    /// Brings it up.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_up(&self) -> Result<(), TapError> {
        Ok(Interface::named(&self.name)?.set_up()?)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For looking at it after it was given to an engine.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn presence(&self) -> Result<Presence, Errno> {
        let device = super::wake::duplicate(self.device.as_fd())?;
        Ok(Presence { device, name: self.name.clone() })
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Whether a [`Tun`] is still there. Keeps it open.
#[derive(Debug)]
pub struct Presence {
    device: OwnedFd,
    name: String,
}

impl Presence {
    /// False when somebody has deleted the device.
    pub fn is_there(&self) -> bool {
        let Ok(mut request) = request_for(&self.name) else { return false };
        // SAFETY: `request` is a whole, initialised ifreq that outlives the call; TUNGETIFF writes
        // nothing else.
        let result = unsafe { libc::ioctl(self.device.as_raw_fd(), libc::TUNGETIFF, &mut request) };
        Errno::result(result).is_ok()
    }
}

/// What a TUN is told of a packet before its bytes: `struct virtio_net_hdr` of linux/virtio_net.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffloadHeader {
    /// The packet is as it should be.
    Whole,
    /// The transport's checksum covers the pseudo header alone; the receiver need not look at it.
    PartialChecksum {
        /// Where the transport's header starts, in bytes from the packet's start.
        transport: u16,
        /// Where in it the checksum is.
        field: u16,
    },
}

impl OffloadHeader {
    /// Bytes in front of each packet.
    pub const LENGTH: usize = 10;

    /// The bytes.
    pub fn bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        if let Self::PartialChecksum { transport, field } = self {
            bytes[0] = NEEDS_CHECKSUM;
            bytes[6..8].copy_from_slice(&transport.to_ne_bytes());
            bytes[8..10].copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }
}

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
