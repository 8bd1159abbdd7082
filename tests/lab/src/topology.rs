//! The standard lab: a client, a director behind a firewall, two data centres.
//!
//! ```text
//!              clients 10.1.0.0/24
//!   client ─────────── r0 ─────────── director       edge 10.2.0.0/24, VIPs on link
//!                      │ │             │     │
//!       10.4.1.0/30 ───┘ └── 10.4.2.0/30     │
//!          │                 │         │     │
//!          r1 ───────────────│─────────┘     │       10.3.1.0/24
//!          │                 r2 ─────────────┘       10.3.2.0/24
//!   dc1 10.20.0.0/24    dc2 10.30.0.0/24
//!   real1, real2, …     realN+1, …
//! ```
//!
//! Requests go client → r0 → director → r1 or r2 → real server; replies go r1 or r2 → r0 → client,
//! and never through the director. Every network also has an IPv6 prefix, `fd00:…::/64` with the
//! second group as in the IPv4 network: `fd00:1::/64` for the clients and so on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Result;
use crate::host::Host;
use crate::machine::{Kind, Machine, MachineSpec};
use crate::namespace::Namespace;
use crate::network::{Segment, address_lines, addresses, make_router, wire};
use crate::ptp::PointToPoint;
use crate::realserver::{RealServer, RealServerSpec};
use crate::run::Run;

/// The IPv4 VIP of the lab.
pub const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
/// The IPv6 VIP of the lab.
pub const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x10));
/// The client's IPv4 address (CIP).
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 10));
/// The client's IPv6 address.
pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x10));
/// The director's address on the edge (DIP).
pub const DIRECTOR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 5));
/// The director's IPv6 address on the edge.
pub const DIRECTOR6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 5));
/// All addresses of the director, from each of which its tunnels may come.
pub const DIRECTOR_ADDRESSES: [IpAddr; 6] = [
    DIRECTOR,
    DIRECTOR6,
    IpAddr::V4(Ipv4Addr::new(10, 3, 1, 5)),
    IpAddr::V4(Ipv4Addr::new(10, 3, 2, 5)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, 5)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x32, 0, 0, 0, 0, 0, 5)),
];
/// r0's address on the edge, the director's default gateway.
pub const EDGE_GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1));

/// The director's device that faces the clients.
pub const CLIENT_DEVICE: &str = "eth0";
/// The director's TAP, which the firewall lets through.
pub const TAP: &str = "adit0";

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct LabSpec {
    /// Number of real servers in each data centre.
    pub reals: [usize; 2],
    /// Do real servers run a PostgreSQL?
    pub postgres: bool,
    /// On which kernel real servers run; by default one that has `tunl0`.
    pub real_kind: Option<Kind>,
    /// Where the director lives: a namespace, or a guest with an older kernel.
    pub director: Kind,
    /// Are the director's links to the data centres point-to-point TUN devices instead of
    /// Ethernet? Only for a director in a namespace.
    pub tun_egress: bool,
    /// MTU in bytes of the hop behind the router of each data centre: 1500, or less.
    pub hop_mtu: [u16; 2],
    /// MTU that real servers clamp TCP segments for; 0 leaves the path's MTU to ICMP.
    pub clamp_mtu: u16,
    /// The VIPs of all real servers.
    pub vips: Vec<IpAddr>,
}

impl Default for LabSpec {
    fn default() -> Self {
        Self {
            reals: [2, 1],
            postgres: true,
            real_kind: None,
            director: Kind::Namespace,
            tun_egress: false,
            hop_mtu: [1500, 1500],
            clamp_mtu: 0,
            vips: vec![VIP, VIP6],
        }
    }
}

/// Hosts and networks that are up. All of it goes away with this value.
pub struct Lab {
    /// The real servers, those of the first data centre first.
    pub reals: Vec<RealServer>,
    /// The host whose sessions are opened.
    pub client: Namespace,
    /// The router between clients, director and data centres.
    pub r0: Namespace,
    /// The router of each data centre.
    pub dc_routers: [Namespace; 2],
    /// Ethernet segment of each data centre.
    pub dcs: [Segment; 2],
    /// Ethernet segment of the clients.
    pub clients: Segment,
    /// Ethernet segment between r0 and the director, where the VIPs are on link.
    pub edge: Segment,
    director: Arc<dyn Host>,
    /// Carries the packets of point-to-point links.
    _links: Vec<PointToPoint>,
    /// Number of the next real server.
    next_real: AtomicUsize,
    spec: LabSpec,
    real_kind: Kind,
    run: Arc<Run>,
}

impl Lab {
    /// Builds the networks and boots all machines at the same time.
    ///
    /// # Errors
    /// The first thing that does not come up; what is there already goes away.
    pub fn build(spec: LabSpec) -> Result<Self> {
        let run = Arc::new(Run::new()?);
        let real_kind = match spec.real_kind {
            Some(kind) => kind,
            None => Kind::with_tunl0(&run)?,
        };
        let r0 = Namespace::create(&run, "r0")?;
        make_router(&r0)?;
        let clients = Segment::create(&r0, "clients", &["10.1.0.1/24", "fd00:1::1/64"])?;
        let edge = Segment::create(&r0, "edge", &["10.2.0.1/24", "fd00:2::1/64"])?;
        for vip in &spec.vips {
            r0.ip(&format!("route add {vip} dev edge"))?;
        }
        let client = add_client(&run, &clients, "client", 10)?;

        let director = Namespace::create(&run, "director")?;
        edge.plug(&director, "eth0")?;
        let mut links = Vec::new();
        let ptp = spec.tun_egress;
        let dc_routers = [
            add_dc_router(&run, &r0, &director, 1, ptp, &mut links)?,
            add_dc_router(&run, &r0, &director, 2, ptp, &mut links)?,
        ];
        let dcs = [
            add_dc(&dc_routers[0], 20, spec.hop_mtu[0])?,
            add_dc(&dc_routers[1], 30, spec.hop_mtu[1])?,
        ];
        let (director, reals) = std::thread::scope(|scope| {
            let director = scope.spawn(|| director_host(director, &spec));
            let reals: Vec<_> = real_servers(&spec, real_kind)
                .map(|(dc, real)| {
                    let (run, dcs) = (&run, &dcs);
                    scope.spawn(move || RealServer::boot(run, &dcs[dc], real))
                })
                .collect();
            let reals: Vec<_> = reals.into_iter().map(join).collect();
            (join(director), reals)
        });
        let (director, reals) = (director?, reals.into_iter().collect::<Result<_>>()?);
        Ok(Self {
            reals,
            client,
            r0,
            dc_routers,
            dcs,
            clients,
            edge,
            director,
            _links: links,
            next_real: AtomicUsize::new(1 + spec.reals.iter().sum::<usize>()),
            spec,
            real_kind,
            run,
        })
    }

    /// The host of the director.
    #[must_use]
    pub fn director(&self) -> Arc<dyn Host> {
        Arc::clone(&self.director)
    }

    /// The director's device towards a data centre (0 or 1).
    #[must_use]
    pub fn egress_device(&self, dc: usize) -> &'static str {
        match (self.spec.tun_egress, dc) {
            (true, 0) => "ptp1",
            (true, _) => "ptp2",
            (false, 0) => "eth1",
            (false, _) => "eth2",
        }
    }

    /// On which kernel the real servers run; tests print it.
    #[must_use]
    pub fn real_kind(&self) -> Kind {
        self.real_kind
    }

    /// The run, for more hosts.
    #[must_use]
    pub fn run(&self) -> &Arc<Run> {
        &self.run
    }

    /// Adds another client to the clients' segment; its addresses end in `number`.
    ///
    /// # Errors
    /// When the number is taken.
    pub fn add_client(&self, number: u8) -> Result<Namespace> {
        add_client(&self.run, &self.clients, &format!("client{number}"), number)
    }

    /// Boots one more real server in a data centre (0 or 1); the caller keeps it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn boot_real(&self, dc: usize) -> Result<RealServer> {
        let number = self.next_real.fetch_add(1, Ordering::Relaxed);
        // Past the addresses of those that were there from the start.
        let spec = real_server(&self.spec, self.real_kind, dc, number, 100 + number);
        RealServer::boot(&self.run, &self.dcs[dc], spec)
    }

    /// The data centre (0 or 1) that a real server is in.
    #[must_use]
    pub fn data_centre(&self, real: &RealServer) -> usize {
        // dc1 is 10.20.0.0/24, dc2 10.30.0.0/24.
        match real.address(false) {
            IpAddr::V4(address) => usize::from(address.octets()[1] == 30),
            IpAddr::V6(_) => unreachable!("an IPv4 address was asked for"),
        }
    }

    /// The real server of that name.
    #[must_use]
    pub fn real(&self, name: &str) -> Option<&RealServer> {
        self.reals.iter().find(|real| real.name() == name)
    }
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The VIP and port of a service.
#[must_use]
pub fn vip(port: u16) -> SocketAddr {
    SocketAddr::new(VIP, port)
}

/// The IPv6 VIP and port of a service.
#[must_use]
pub fn vip6(port: u16) -> SocketAddr {
    SocketAddr::new(VIP6, port)
}

fn add_client(run: &Arc<Run>, clients: &Segment, label: &str, number: u8) -> Result<Namespace> {
    let client = Namespace::create(run, label)?;
    clients.plug(&client, "eth0")?;
    let own = [format!("10.1.0.{number}/24"), format!("fd00:1::{number}/64")];
    client.ip(&format!(
        "{}route add default via 10.1.0.1\nroute add default via fd00:1::1",
        address_lines("eth0", &[&own[0], &own[1]])
    ))?;
    // Replies take another way than requests.
    client.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
    client.sysctl("net.ipv4.conf.default.rp_filter", "0")?;
    Ok(client)
}

/// Router `number` with its wires to the director and, for the replies, to r0.
fn add_dc_router(
    run: &Arc<Run>,
    r0: &Namespace,
    director: &Namespace,
    number: usize,
    point_to_point: bool,
    links: &mut Vec<PointToPoint>,
) -> Result<Namespace> {
    let router = Namespace::create(run, &format!("r{number}"))?;
    make_router(&router)?;
    if point_to_point {
        let device = format!("ptp{number}");
        links.push(PointToPoint::create(director, &device, &router, "director")?);
    } else {
        wire(director, &format!("eth{number}"), &router, "director")?;
    }
    addresses(
        &router,
        "director",
        &[&format!("10.3.{number}.1/24"), &format!("fd00:3{number}::1/64")],
    )?;
    wire(r0, &format!("r{number}"), &router, "r0")?;
    addresses(
        r0,
        &format!("r{number}"),
        &[&format!("10.4.{number}.1/30"), &format!("fd00:4{number}::1/64")],
    )?;
    addresses(&router, "r0", &[&format!("10.4.{number}.2/30"), &format!("fd00:4{number}::2/64")])?;
    router.ip(&format!(
        "route add default via 10.4.{number}.1\nroute add default via fd00:4{number}::1\n\
         route add {DIRECTOR}/32 via 10.3.{number}.5\n\
         route add {DIRECTOR6}/128 via fd00:3{number}::5"
    ))?;
    let net = if number == 1 { "20" } else { "30" };
    r0.ip(&format!(
        "route add 10.{net}.0.0/24 via 10.4.{number}.2\n\
         route add fd00:{net}::/64 via fd00:4{number}::2"
    ))?;
    Ok(router)
}

/// The segment of a data centre. A narrow hop is the router's route into it, so that the router
/// itself answers what does not fit, while replies may still be large.
fn add_dc(router: &Namespace, net: u8, hop_mtu: u16) -> Result<Segment> {
    let own = [format!("10.{net}.0.1/24"), format!("fd00:{net}::1/64")];
    let segment = Segment::create(router, "dc", &[&own[0], &own[1]])?;
    if hop_mtu < 1500 {
        router.ip(&format!(
            "route replace 10.{net}.0.0/24 dev dc mtu lock {hop_mtu}\n\
             route replace fd00:{net}::/64 dev dc mtu lock {hop_mtu} metric 1"
        ))?;
    }
    Ok(segment)
}

fn real_servers(spec: &LabSpec, kind: Kind) -> impl Iterator<Item = (usize, RealServerSpec)> {
    let places = (0..2).flat_map(|dc| (0..spec.reals[dc]).map(move |index| (dc, index)));
    places
        .enumerate()
        .map(move |(before, (dc, index))| (dc, real_server(spec, kind, dc, before + 1, 11 + index)))
}

fn real_server(
    spec: &LabSpec,
    kind: Kind,
    dc: usize,
    number: usize,
    host_part: usize,
) -> RealServerSpec {
    let net = [20, 30][dc];
    let gateways: [IpAddr; 2] = [
        Ipv4Addr::new(10, net, 0, 1).into(),
        // The groups of the prefix are written as the decimal digits of the IPv4 network.
        Ipv6Addr::new(0xfd00, [0x20, 0x30][dc], 0, 0, 0, 0, 0, 1).into(),
    ];
    RealServerSpec {
        name: format!("real{number}"),
        kind,
        addresses: vec![
            format!("10.{net}.0.{host_part}/24"),
            format!("fd00:{net}::{host_part}/64"),
        ],
        gateways: gateways.to_vec(),
        vips: spec.vips.clone(),
        directors: DIRECTOR_ADDRESSES.to_vec(),
        path_mtu: spec.clamp_mtu,
        postgres: spec.postgres,
    }
}

/// Addresses, routes and firewall of the director.
fn director_host(namespace: Namespace, spec: &LabSpec) -> Result<Arc<dyn Host>> {
    let mut lines = address_lines("eth0", &["10.2.0.5/24", "fd00:2::5/64"]);
    for number in 1..=2 {
        let device = if spec.tun_egress { "ptp" } else { "eth" };
        lines.push_str(&address_lines(
            &format!("{device}{number}"),
            &[&format!("10.3.{number}.5/24"), &format!("fd00:3{number}::5/64")],
        ));
    }
    lines.push_str(
        "route add default via 10.2.0.1\nroute add default via fd00:2::1\n\
         route add 10.20.0.0/24 via 10.3.1.1\nroute add 10.30.0.0/24 via 10.3.2.1\n\
         route add fd00:20::/64 via fd00:31::1\nroute add fd00:30::/64 via fd00:32::1\n",
    );
    match spec.director {
        Kind::Namespace => {
            make_router(&namespace)?;
            namespace.ip(&lines)?;
            namespace.nft(&firewall(&spec.vips))?;
            Ok(Arc::new(namespace))
        }
        Kind::Guest => {
            let machine = Machine::boot(
                namespace,
                &MachineSpec {
                    nics: 3,
                    setup: format!(
                        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
                         net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0\n\
                         ip -batch - <<END\n{lines}END\n"
                    ),
                    modules: vec!["tun"],
                    ..MachineSpec::default()
                },
            )?;
            Ok(Arc::new(machine))
        }
    }
}

/// A host firewall as careful administrators have it: everything is dropped that is not known or
/// named. The accept rules for the TAP are those that `adit check` asks for.
fn firewall(vips: &[IpAddr]) -> String {
    let mut accepts = String::new();
    for vip in vips {
        let version = if vip.is_ipv4() { "ip" } else { "ip6" };
        accepts.push_str(&format!(
            "iifname {CLIENT_DEVICE} oifname {TAP} {version} daddr {vip} accept\n"
        ));
    }
    format!(
        "table inet firewall {{
            chain input {{
                type filter hook input priority filter; policy drop;
                ct state established,related accept
                ct state invalid drop
                iifname lo accept
                icmp type {{ echo-request, destination-unreachable, time-exceeded }} accept
                icmpv6 type {{ echo-request, nd-neighbor-solicit, nd-neighbor-advert,
                    nd-router-advert, packet-too-big, destination-unreachable }} accept
            }}
            chain forward {{
                type filter hook forward priority filter; policy drop;
                ct state established,related accept
                ct state invalid drop
                {accepts}
                iifname {TAP} oifname {CLIENT_DEVICE} accept
            }}
        }}"
    )
}
