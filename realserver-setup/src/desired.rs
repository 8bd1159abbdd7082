//! What is wanted: the checked description of a real server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use crate::firewall::{Entrance, Rules, version_name};
use crate::kernel::{DECAP, Device, GuePort, Module, Version};

/// Bytes of TCP's header without options, and of the inner IP header.
const TCP: u16 = 20;
const IPV4: u16 = 20;
const IPV6: u16 = 40;

/// What every IPv4 host takes (RFC 9293 §3.7.1); below, something else is wrong.
const SMALLEST_SEGMENT: u16 = 536;

/// A way in which directors send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tunnel {
    /// IPv4 in IPv4 (RFC 2003).
    Ipip,
    /// IPv6 in IPv4 (RFC 4213).
    Sit,
    /// Either in IPv6 (RFC 2473).
    Ip6Tnl,
    /// GRE without key and checksum (RFC 2784).
    Gre,
    /// Either in UDP with a GUE header.
    Gue,
}

impl Tunnel {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ipip, Self::Sit, Self::Ip6Tnl, Self::Gre, Self::Gue];

    /// As in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Sit => "sit",
            Self::Ip6Tnl => "ip6tnl",
            Self::Gre => "gre",
            Self::Gue => "gue",
        }
    }

    /// The device that unwraps it, for outer headers and VIPs of these versions; none: it is not
    /// used for them.
    #[must_use]
    pub const fn device(self, outer: Version, inner: Version) -> Option<Device> {
        match (self, outer, inner) {
            (Self::Ipip | Self::Gue, Version::V4, Version::V4) => Some(Device::Tunl0),
            (Self::Sit | Self::Gue, Version::V4, Version::V6) => Some(Device::Sit0),
            (Self::Ip6Tnl | Self::Gue, Version::V6, _) => Some(Device::Ip6),
            (Self::Gre, Version::V4, _) => Some(Device::Gre0),
            (Self::Gre, Version::V6, _) => Some(Device::Gre6),
            (Self::Ipip | Self::Sit, _, _) | (Self::Ip6Tnl, Version::V4, _) => None,
        }
    }

    /// Bytes that it puts in front of a packet.
    #[must_use]
    pub const fn overhead(self, outer: Version) -> u16 {
        let own = match self {
            Self::Ipip | Self::Sit | Self::Ip6Tnl => 0,
            Self::Gre => 4,
            // UDP's header and GUE's.
            Self::Gue => 8 + 4,
        };
        match outer {
            Version::V4 => IPV4 + own,
            Version::V6 => IPV6 + own,
        }
    }
}

/// Where VIPs are put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VipDevice {
    /// On the device that unwraps.
    #[default]
    Tunnel,
    /// On the loopback device.
    Lo,
}

/// A real server as it should be. Its fields fit each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    vips: BTreeSet<IpAddr>,
    directors: BTreeSet<IpAddr>,
    tunnels: BTreeSet<Tunnel>,
    path_mtu: Option<u16>,
    vip_device: VipDevice,
    local: Option<Ipv6Addr>,
    gue_port: u16,
    in_userspace: bool,
}

/// What a [`Desired`] is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Virtual IPs.
    pub vips: BTreeSet<IpAddr>,
    /// Outer sources of tunnelled packets.
    pub directors: BTreeSet<IpAddr>,
    /// How they send; empty: IP in IP for all versions of both.
    pub tunnels: BTreeSet<Tunnel>,
    /// MTU in bytes of the path from them; 0: TCP segments are left alone.
    pub path_mtu: u16,
    /// Where VIPs are put.
    pub vip_device: VipDevice,
    /// Address of this host that they send to over IPv6, where it has several.
    pub local: Option<Ipv6Addr>,
    /// UDP port of GUE.
    pub gue_port: u16,
}

/// Why these wishes do not fit each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// Nothing to serve.
    #[error("no VIP is given: vips = [\"198.51.100.10\"], or --vip 198.51.100.10")]
    NoVip,
    /// Nobody to serve for.
    #[error(
        "no director is given: directors = [\"10.0.0.5\"], or --director 10.0.0.5; packets that others \
         tunnel to this host are dropped, since they could be anybody's"
    )]
    NoDirector,
    /// A VIP that nobody can reach.
    #[error("no tunnel brings {vip} from {directors} directors: {mend}")]
    NoTunnel {
        /// The VIP.
        vip: IpAddr,
        /// Versions of the directors' addresses.
        directors: &'static str,
        /// What to do.
        mend: String,
    },
    /// A tunnel that nobody can use.
    #[error("tunnel `{}` brings none of the VIPs from directors of these IP versions: leave it out", tunnel.name())]
    IdleTunnel {
        /// The tunnel.
        tunnel: Tunnel,
    },
    /// A tunnel that only the kernel unwraps.
    #[error(
        "tunnel `{}` is not unwrapped by `adit-realserver decap`, only IP in IP: leave it out, and let the \
         director use `ipip`",
        tunnel.name()
    )]
    KernelOnly {
        /// The tunnel.
        tunnel: Tunnel,
    },
    /// An address that is both.
    #[error("{0} is a VIP and a director")]
    VipIsDirector(IpAddr),
    /// The path is smaller than any IP host must take.
    #[error("a path MTU of {mtu} bytes leaves no room for a segment behind the outer header")]
    PathTooSmall {
        /// The given path MTU in bytes.
        mtu: u16,
    },
}

impl Desired {
    /// Checks the wishes.
    ///
    /// # Errors
    /// See [`WishError`].
    pub fn new(wishes: Wishes) -> Result<Self, WishError> {
        let Wishes { vips, directors, mut tunnels, path_mtu, vip_device, local, gue_port } = wishes;
        if vips.is_empty() {
            return Err(WishError::NoVip);
        }
        if directors.is_empty() {
            return Err(WishError::NoDirector);
        }
        if let Some(&both) = vips.intersection(&directors).next() {
            return Err(WishError::VipIsDirector(both));
        }
        let pairs = pairs(&directors, &vips);
        if tunnels.is_empty() {
            tunnels = pairs.iter().map(|&(outer, inner)| plain(outer, inner)).collect();
        }
        let idle = |tunnel: &&Tunnel| !pairs.iter().any(|&(o, i)| tunnel.device(o, i).is_some());
        if let Some(&tunnel) = tunnels.iter().find(idle) {
            return Err(WishError::IdleTunnel { tunnel });
        }
        for &vip in &vips {
            let inner = Version::of(vip);
            let outers: BTreeSet<_> = directors.iter().map(|&d| Version::of(d)).collect();
            let reached =
                |outer: &Version| tunnels.iter().any(|t| t.device(*outer, inner).is_some());
            if let Some(&missing) = outers.iter().find(|outer| !reached(outer)) {
                let mend = format!("add \"{}\" to tunnels", plain(missing, inner).name());
                let directors = version_name(missing);
                return Err(WishError::NoTunnel { vip, directors, mend });
            }
        }
        let path_mtu = Some(path_mtu).filter(|&mtu| mtu != 0);
        let desired = Self {
            vips,
            directors,
            tunnels,
            path_mtu,
            vip_device,
            local,
            gue_port,
            in_userspace: false,
        };
        match path_mtu {
            Some(mtu) if desired.segment_sizes().len() != desired.versions().len() => {
                Err(WishError::PathTooSmall { mtu })
            }
            _ => Ok(desired),
        }
    }

    /// The same, unwrapped by `adit-realserver decap` instead of the kernel's devices.
    ///
    /// # Errors
    /// [`WishError::KernelOnly`].
    pub fn in_userspace(self) -> Result<Self, WishError> {
        let kernel_only = |tunnel: &&Tunnel| matches!(tunnel, Tunnel::Gre | Tunnel::Gue);
        match self.tunnels.iter().find(kernel_only) {
            Some(&tunnel) => Err(WishError::KernelOnly { tunnel }),
            None => Ok(Self { in_userspace: true, ..self }),
        }
    }

    /// Is it `adit-realserver decap` that unwraps?
    #[must_use]
    pub fn is_in_userspace(&self) -> bool {
        self.in_userspace
    }

    /// Addresses whose traffic the host serves.
    #[must_use]
    pub fn vips(&self) -> &BTreeSet<IpAddr> {
        &self.vips
    }

    /// Who may send tunnelled packets.
    #[must_use]
    pub fn directors(&self) -> &BTreeSet<IpAddr> {
        &self.directors
    }

    /// The address of this host that directors send to over IPv6, where it was named.
    #[must_use]
    pub fn local(&self) -> Option<Ipv6Addr> {
        self.local
    }

    /// Path MTU in bytes that TCP segments are limited for.
    #[must_use]
    pub fn path_mtu(&self) -> Option<u16> {
        self.path_mtu
    }

    /// IP versions of the VIPs.
    #[must_use]
    pub fn versions(&self) -> BTreeSet<Version> {
        self.vips.iter().map(|&vip| Version::of(vip)).collect()
    }

    /// What tunnel, outer and inner version meet.
    fn uses(&self) -> impl Iterator<Item = (Tunnel, Version, Version, Device)> {
        let pairs = pairs(&self.directors, &self.vips);
        pairs.into_iter().flat_map(|(outer, inner)| {
            self.tunnels.iter().filter_map(move |&tunnel| {
                Some((tunnel, outer, inner, tunnel.device(outer, inner)?))
            })
        })
    }

    /// Devices of the kernel that must unwrap.
    #[must_use]
    pub fn devices(&self) -> BTreeSet<Device> {
        if self.in_userspace {
            return BTreeSet::new();
        }
        self.uses().map(|(_, _, _, device)| device).collect()
    }

    /// Ports where GUE must be taken off.
    #[must_use]
    pub fn ports(&self) -> BTreeSet<GuePort> {
        self.uses()
            .filter(|(tunnel, ..)| *tunnel == Tunnel::Gue)
            .map(|(_, version, ..)| GuePort { version, port: self.gue_port })
            .collect()
    }

    /// Modules that this needs, in an order in which they can be loaded.
    #[must_use]
    pub fn modules(&self) -> Vec<Module> {
        // Ports of both versions are fou's; fou6 takes what comes to those of IPv6.
        let of_port = |port: &GuePort| match port.version {
            Version::V4 => &[Module::Fou][..],
            Version::V6 => &[Module::Fou, Module::Fou6],
        };
        let devices = self.devices();
        let ports = self.ports();
        let needed: BTreeSet<_> = devices
            .iter()
            .map(|device| device.module())
            .chain(ports.iter().flat_map(of_port).copied())
            .collect();
        Module::ALL.into_iter().filter(|module| needed.contains(module)).collect()
    }

    /// The device that a VIP is put on.
    #[must_use]
    pub fn holder(&self, vip: IpAddr) -> &'static str {
        let inner = Version::of(vip);
        match self.vip_device {
            VipDevice::Lo => "lo",
            VipDevice::Tunnel if self.in_userspace => DECAP,
            // One that unwraps this version, whichever way its packets come: the kernel takes an
            // address for its own on whichever device it is. Devices are in order of preference.
            VipDevice::Tunnel => self
                .uses()
                .filter(|(_, _, carried, _)| *carried == inner)
                .map(|(_, _, _, device)| device)
                .min()
                .map_or("lo", Device::name),
        }
    }

    /// Largest TCP segment in bytes that a client may send, by version of the VIP: what fits the path
    /// behind the largest outer header. A version for which nothing sensible fits is left out.
    #[must_use]
    pub fn segment_sizes(&self) -> BTreeMap<Version, u16> {
        self.path_mtu.map_or_else(BTreeMap::new, |mtu| self.segment_sizes_for(mtu))
    }

    /// The same for a path of this MTU.
    #[must_use]
    pub fn segment_sizes_for(&self, path_mtu: u16) -> BTreeMap<Version, u16> {
        let mut sizes = BTreeMap::new();
        for inner in self.versions() {
            let of_inner = self.uses().filter(|(_, _, carried, _)| *carried == inner);
            let overhead = of_inner.map(|(tunnel, outer, ..)| tunnel.overhead(outer)).max();
            let header = if inner == Version::V4 { IPV4 } else { IPV6 };
            let size = path_mtu.checked_sub(overhead.unwrap_or(0) + header + TCP);
            if let Some(size) = size.filter(|&size| size >= SMALLEST_SEGMENT) {
                sizes.insert(inner, size);
            }
        }
        sizes
    }

    /// UDP port of GUE.
    #[must_use]
    pub fn gue_port(&self) -> u16 {
        self.gue_port
    }

    /// What directors send by.
    #[must_use]
    pub fn entrances(&self) -> BTreeSet<Entrance> {
        self.uses()
            .flat_map(|(tunnel, outer, inner, _)| {
                let inner_protocol = if inner == Version::V4 { 4 } else { 41 };
                match tunnel {
                    Tunnel::Ipip | Tunnel::Sit | Tunnel::Ip6Tnl => {
                        Some(Entrance::Protocol(outer, inner_protocol))
                    }
                    Tunnel::Gre => Some(Entrance::Protocol(outer, 47)),
                    Tunnel::Gue => Some(Entrance::Udp(outer, self.gue_port)),
                }
            })
            .collect()
    }

    /// The rules that let in what directors send, and nobody else's.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules::new(
            &self.devices(),
            &self.entrances(),
            &self.directors,
            &self.vips,
            &self.segment_sizes(),
        )
    }
}

/// IP in IP for these versions.
const fn plain(outer: Version, inner: Version) -> Tunnel {
    match (outer, inner) {
        (Version::V4, Version::V4) => Tunnel::Ipip,
        (Version::V4, Version::V6) => Tunnel::Sit,
        (Version::V6, _) => Tunnel::Ip6Tnl,
    }
}

fn pairs(directors: &BTreeSet<IpAddr>, vips: &BTreeSet<IpAddr>) -> BTreeSet<(Version, Version)> {
    let versions =
        |of: &BTreeSet<IpAddr>| of.iter().map(|&a| Version::of(a)).collect::<BTreeSet<_>>();
    let inner = versions(vips);
    let outer = versions(directors);
    outer.into_iter().flat_map(|outer| inner.iter().map(move |&inner| (outer, inner))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn wishes(vips: &[&str], directors: &[&str], tunnels: &[Tunnel]) -> Wishes {
        let addresses =
            |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
        Wishes {
            vips: addresses(vips),
            directors: addresses(directors),
            tunnels: tunnels.iter().copied().collect(),
            path_mtu: 1500,
            vip_device: VipDevice::Tunnel,
            local: None,
            gue_port: 6080,
        }
    }

    const V4: &str = "198.51.100.10";
    const V6: &str = "2001:db8:100::10";
    const D4: &str = "10.0.0.5";
    const D6: &str = "2001:db8::5";

    fn desired(
        vips: &[&str],
        directors: &[&str],
        tunnels: &[Tunnel],
    ) -> Result<Desired, WishError> {
        Desired::new(wishes(vips, directors, tunnels))
    }

    #[test]
    fn tunnels_follow_the_versions_of_vips_and_directors() {
        use Device::{Ip6, Sit0, Tunl0};
        for (vips, directors, devices) in [
            (&[V4][..], &[D4][..], &[Tunl0][..]),
            (&[V6], &[D4], &[Sit0]),
            (&[V4, V6], &[D4], &[Tunl0, Sit0]),
            (&[V4, V6], &[D6], &[Ip6]),
            (&[V4], &[D4, D6], &[Tunl0, Ip6]),
        ] {
            let made = desired(vips, directors, &[]).unwrap();
            assert_eq!(made.devices(), devices.iter().copied().collect(), "{vips:?} {directors:?}");
        }
        let made = desired(&[V4, V6], &[D4, D6], &[Tunnel::Gue]).unwrap();
        assert_eq!(made.devices(), [Tunl0, Sit0, Ip6].into());
        assert_eq!(made.ports().len(), 2);
        assert_eq!(made.holder(V6.parse().unwrap()), "sit0");
    }

    #[test]
    fn in_userspace_the_kernel_needs_no_devices() {
        let made = desired(&[V4, V6], &[D4, D6], &[]).unwrap();
        let (sizes, entrances) = (made.segment_sizes(), made.entrances());
        let made = made.in_userspace().unwrap();
        assert!(made.is_in_userspace() && made.devices().is_empty() && made.modules().is_empty());
        assert_eq!(made.holder(V4.parse().unwrap()), DECAP);
        assert_eq!((made.segment_sizes(), made.entrances()), (sizes, entrances));
        let gre = desired(&[V4], &[D4], &[Tunnel::Ipip, Tunnel::Gre]).unwrap();
        assert_eq!(gre.in_userspace(), Err(WishError::KernelOnly { tunnel: Tunnel::Gre }));
        let lo = Wishes { vip_device: VipDevice::Lo, ..wishes(&[V4], &[D4], &[]) };
        let lo = Desired::new(lo).unwrap().in_userspace().unwrap();
        assert_eq!(lo.holder(V4.parse().unwrap()), "lo");
    }

    #[test]
    fn segments_leave_room_for_every_outer_header() {
        let sizes = |vips: &[&str], directors: &[&str], tunnels: &[Tunnel]| {
            let sizes = desired(vips, directors, tunnels).unwrap().segment_sizes();
            sizes.into_values().collect::<Vec<_>>()
        };
        // 1500 − outer − inner − TCP's 20.
        assert_eq!(sizes(&[V4, V6], &[D4], &[]), [1440, 1420]);
        assert_eq!(sizes(&[V4, V6], &[D6], &[]), [1420, 1400]);
        assert_eq!(sizes(&[V4], &[D4, D6], &[]), [1420]);
        assert_eq!(sizes(&[V4], &[D4], &[Tunnel::Gre]), [1436]);
        assert_eq!(sizes(&[V4], &[D4], &[Tunnel::Gue]), [1428]);
        assert_eq!(sizes(&[V4], &[D4], &[Tunnel::Ipip, Tunnel::Gue]), [1428]);
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert_eq!(desired(&[], &[D4], &[]), Err(WishError::NoVip));
        assert_eq!(desired(&[V4], &[], &[]), Err(WishError::NoDirector));
        assert!(matches!(desired(&[V4], &[V4], &[]), Err(WishError::VipIsDirector(_))));
        let refused = desired(&[V4, V6], &[D4], &[Tunnel::Ipip]).unwrap_err();
        assert!(refused.to_string().contains("add \"sit\" to tunnels"), "{refused}");
        let refused = desired(&[V4], &[D6, D4], &[Tunnel::Ipip]).unwrap_err();
        assert!(refused.to_string().contains("add \"ip6tnl\" to tunnels"), "{refused}");
        let refused = desired(&[V4], &[D4], &[Tunnel::Ipip, Tunnel::Sit]);
        assert_eq!(refused, Err(WishError::IdleTunnel { tunnel: Tunnel::Sit }));
        let tight = Wishes { path_mtu: 100, ..wishes(&[V4], &[D4], &[]) };
        assert_eq!(Desired::new(tight), Err(WishError::PathTooSmall { mtu: 100 }));
        let free = Wishes { path_mtu: 0, ..wishes(&[V4], &[D4], &[]) };
        assert!(Desired::new(free).unwrap().segment_sizes().is_empty());
    }
}
