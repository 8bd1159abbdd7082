//! The TAP device that VIP traffic is routed or bridged into.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollTimeout, poll};
use nix::sys::stat::Mode;
use thiserror::Error;

use super::clock::boottime_ns;
use super::interface::{Interface, InterfaceError, request_for};

/// What the device is to be.
#[derive(Debug, Clone)]
pub struct TapConfig {
    /// Interface name, 15 bytes at most. Both MAC addresses are derived from it.
    pub name: String,
    /// MTU in bytes of the network layer: at least that of the interface that faces the clients.
    pub mtu: u32,
    /// Frames the kernel queues in front of the reader before it drops (`txqueuelen`).
    pub queue_length: u32,
    /// Queues, a reader each: 256 at most, as the kernel has it.
    pub queues: u16,
}

impl TapConfig {
    /// Default of `queue_length`: at 1 million packets per second it bridges 4 ms in which the
    /// worker does not read (a scheduling hiccup), the ring costs 32 kB. Each queue has its own.
    pub const DEFAULT_QUEUE_LENGTH: u32 = 4096;
}

/// An open, non-persistent TAP device: it is gone when this is dropped, or the process dies.
#[derive(Debug)]
pub struct Tap {
    /// Its queues, one at least.
    queues: Vec<OwnedFd>,
    /// How many it is to have.
    wanted: u16,
    name: String,
    index: u32,
    mtu: u32,
}

/// Why there is no TAP.
#[derive(Debug, Error)]
pub enum TapError {
    /// The driver is not there.
    #[error(
        "/dev/net/tun: {0}: load the driver (`modprobe tun`), or give the container the device"
    )]
    NoDriver(Errno),
    /// The process may not open the driver or create the device.
    #[error("{name}: {errno}: run as root or give CAP_NET_ADMIN")]
    NotPermitted {
        /// The device.
        name: String,
        /// `EPERM` or `EACCES`.
        errno: Errno,
    },
    /// Another process has it open, and kept it for two seconds. (One that was killed gives it back
    /// a little after it is gone.)
    #[error("{name} is in use by another process (is another Adit running?)")]
    Busy {
        /// The device.
        name: String,
    },
    /// An interface of this name exists and is no such device, or none of as many queues.
    #[error(
        "{name} exists and is not a device of Adit's: remove it (`ip link del {name}`) or choose another name"
    )]
    NotATap {
        /// The device.
        name: String,
    },
    /// The name is not one for an interface.
    #[error("{name:?} is no interface name: 1 to 15 bytes without `/`")]
    Name {
        /// What was given.
        name: String,
    },
    /// Another refusal of TUNSETIFF.
    #[error("{name}: TUNSETIFF: {errno}")]
    Refused {
        /// The device.
        name: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The device is there, but a setting was refused.
    #[error(transparent)]
    Setting(#[from] InterfaceError),
}

impl Tap {
    /// Creates the device with its first queue, sets its MAC, MTU and queue length, and brings it up.
    ///
    /// The descriptor is non-blocking: kernels before 6.4 lack `FMODE_NOWAIT` on TUN/TAP and would
    /// punt each request of a ring to a worker thread otherwise.
    ///
    /// Waits up to two seconds for a device that is in use or of another kind: see
    /// [`TapError::Busy`].
    ///
    /// # Errors
    /// Says what to do: driver missing, privilege missing, device in use or of another kind.
    pub fn open(config: &TapConfig) -> Result<Self, TapError> {
        patiently(|| Self::attach(config))
    }

    fn attach(config: &TapConfig) -> Result<Self, TapError> {
        let name = config.name.clone();
        let first = match config.queues {
            0 | 1 => attach_queue(&name, DriverFlags::TAP)?,
            // Without it one would become one more queue of a device that somebody else has.
            _ => attach_queue(&name, DriverFlags::FIRST_OF_SEVERAL)?,
        };

        let interface = Interface::named(&name)?;
        interface.set_mac(kernel_mac(&name))?;
        interface.set_mtu(config.mtu)?;
        interface.set_queue_length(config.queue_length)?;
        interface.set_up()?;
        let index = interface.index()?;
        let (queues, wanted) = (vec![first], config.queues);
        Ok(Self { queues, wanted, name, index, mtu: config.mtu })
    }

    /// Opens the other queues it is to have. Until then all packets come to the first, which is what
    /// [`super::choose`] needs; and before traffic is led here, since a queue that nobody reads
    /// holds what comes.
    ///
    /// # Errors
    /// As [`Tap::open`].
    pub fn attach_queues(&mut self) -> Result<(), TapError> {
        while self.queues.len() < usize::from(self.wanted) {
            self.queues.push(attach_queue(&self.name, DriverFlags::ONE_OF_SEVERAL)?);
        }
        Ok(())
    }

    /// One of its queues, by its number from 0 on.
    pub fn queue(&self, number: usize) -> Option<BorrowedFd<'_>> {
        self.queues.get(number).map(AsFd::as_fd)
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its MTU in bytes of the network layer.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The MAC of the kernel's side: the same after each restart, so that neighbour entries of a
    /// bridged network stay valid.
    pub fn mac(&self) -> [u8; 6] {
        kernel_mac(&self.name)
    }

    /// The MAC that Adit answers with on this device; frames to VIPs carry it as destination.
    pub fn peer_mac(&self) -> [u8; 6] {
        let mut mac = kernel_mac(&self.name);
        mac[0] = 0x06;
        mac
    }
}

impl AsFd for Tap {
    /// The first queue.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queues[0].as_fd()
    }
}

/// Opens one queue of a device, which is made with the first.
pub(super) fn attach_queue(name: &str, flags: DriverFlags) -> Result<OwnedFd, TapError> {
    let name = name.to_owned();
    let mut request = request_for(&name).map_err(|_| TapError::Name { name: name.clone() })?;
    let mode = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let fd = open("/dev/net/tun", mode, Mode::empty()).map_err(|errno| match errno {
        Errno::EPERM | Errno::EACCES => TapError::NotPermitted { name: name.clone(), errno },
        _ => TapError::NoDriver(errno),
    })?;

    request.ifr_ifru.ifru_flags = flags.0;
    // SAFETY: `request` is a whole, initialised ifreq that outlives the call; TUNSETIFF reads
    // and writes nothing else.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    Errno::result(result).map_err(|errno| match errno {
        Errno::EPERM | Errno::EACCES => TapError::NotPermitted { name: name.clone(), errno },
        Errno::EBUSY => TapError::Busy { name: name.clone() },
        Errno::EINVAL => TapError::NotATap { name: name.clone() },
        errno => TapError::Refused { name: name.clone(), errno },
    })?;
    Ok(fd)
}

/// A killed process gives its TAP back a moment after it is gone: its ring is taken down by a kernel
/// thread, which holds the files till then. So a restart right after a crash waits; milliseconds as a
/// rule, longer on a busy machine.
const BUSY_PATIENCE_NS: u64 = 2_000_000_000;

/// Opens a device again and again while somebody has it, for [`BUSY_PATIENCE_NS`] at most.
pub(super) fn patiently<T>(open: impl Fn() -> Result<T, TapError>) -> Result<T, TapError> {
    let deadline = boottime_ns() + BUSY_PATIENCE_NS;
    loop {
        match open() {
            // Of another kind than wanted is also what a killed director with another number of
            // queues leaves for a moment.
            Err(TapError::Busy { .. } | TapError::NotATap { .. }) if boottime_ns() < deadline => {
                pause();
            }
            result => return result,
        }
    }
}

/// Waits 10 ms.
fn pause() {
    // Nothing is polled, so the only results are the time's end and EINTR; both mean to go on.
    let _ = poll(&mut [], PollTimeout::from(10u8));
}

/// What the driver is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct DriverFlags(libc::c_short);

impl DriverFlags {
    const TAP: Self = Self(IFF_TAP | IFF_NO_PI);
    const ONE_OF_SEVERAL: Self = Self(IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE);
    const FIRST_OF_SEVERAL: Self = Self(IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE | IFF_TUN_EXCL);
    pub(super) const TUN_WITH_OFFLOAD_HEADERS: Self = Self(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR);
}

const IFF_TUN: libc::c_short = 0x0001;
const IFF_TAP: libc::c_short = 0x0002;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;
const IFF_MULTI_QUEUE: libc::c_short = 0x0100;
/// Refuse a device that is there already. It is the sign bit of the field.
const IFF_TUN_EXCL: libc::c_short = libc::c_short::MIN;

/// `02:` (locally administered, unicast) and 40 bits of the name's FNV-1a hash. The peer's differs
/// in the first byte only, `06:`, which is locally administered as well.
fn kernel_mac(name: &str) -> [u8; 6] {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let [_, _, _, a, b, c, d, e] = (hash ^ (hash >> 40)).to_be_bytes();
    [0x02, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_namespace;

    fn config(name: &str) -> TapConfig {
        TapConfig { name: name.into(), mtu: 1400, queue_length: 777, queues: 1 }
    }

    #[test]
    fn macs_are_stable_local_and_distinct() {
        assert_eq!(kernel_mac("adit0"), kernel_mac("adit0"));
        assert_ne!(kernel_mac("adit0"), kernel_mac("adit1"));
        assert_eq!(kernel_mac("adit0")[0] & 3, 2, "locally administered, not a group address");
    }

    #[test]
    fn opens_as_configured_and_is_gone_after_drop() {
        in_namespace("opens_as_configured_and_is_gone_after_drop", || {
            let tap = Tap::open(&config("adit-t")).unwrap();
            let read = |file: &str| {
                // /sys shows the namespace it was mounted in, so ask the kernel by ioctl or ip.
                let out = std::process::Command::new("ip")
                    .args(["-o", "link", "show", "dev", "adit-t"])
                    .output()
                    .unwrap();
                let text = String::from_utf8(out.stdout).unwrap();
                assert!(text.contains(file), "{file} not in {text}");
            };
            read("mtu 1400");
            read("qlen 777");
            read("UP");
            let mac = tap.mac().map(|b| format!("{b:02x}")).join(":");
            read(&mac);
            assert_eq!(super::super::interface_index("adit-t").unwrap(), tap.index());
            assert!(matches!(Tap::open(&config("adit-t")), Err(TapError::Busy { .. })));
            drop(tap);
            assert_eq!(super::super::interface_index("adit-t").unwrap_err().errno, Errno::ENODEV);
        });
    }

    #[test]
    fn has_as_many_queues_as_asked_for_and_shares_none_of_them() {
        in_namespace("has_as_many_queues_as_asked_for_and_shares_none_of_them", || {
            let several = TapConfig { queues: 3, ..config("adit-q") };
            let mut tap = Tap::open(&several).unwrap();
            assert_eq!(tap.queues(), 1, "to begin with");
            tap.attach_queues().unwrap();
            assert_eq!(tap.queues(), 3);
            assert!(tap.queue(2).is_some() && tap.queue(3).is_none());
            // Another director would take part of the packets otherwise.
            assert!(matches!(Tap::open(&several), Err(TapError::Busy { .. })));
            let one = Tap::open(&config("adit-q")).unwrap_err();
            assert!(matches!(one, TapError::NotATap { .. }), "{one}");
        });
    }

    #[test]
    fn says_what_is_in_the_way() {
        in_namespace("says_what_is_in_the_way", || {
            let too_long = Tap::open(&config("a-name-of-sixteen")).unwrap_err();
            assert!(matches!(too_long, TapError::Name { .. }));
            let not_a_tap = Tap::open(&config("lo")).unwrap_err();
            assert!(matches!(not_a_tap, TapError::NotATap { .. }), "{not_a_tap}");
        });
    }
}
