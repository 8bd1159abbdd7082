//! Against a real kernel, in a namespace of the test's own.

use super::egress::{Egress, KernelReason, Wanted};
use super::routes::RouteKind;
use super::watch::{HostChange, HostWatch};
use super::xfrm::XfrmPolicies;
use super::{
    Netlink,
    vip_routes::{Leading, Reserve, VipRoute},
};
use crate::control::config::{RealTunnel, VipPrefix};
use crate::control::runtime;
use crate::control::testing::{eventually, own_network, run};
use netlink_sys::AsyncSocketExt;
use std::net::IpAddr;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn first(vip: VipPrefix) -> (VipPrefix, Leading) {
    (vip, Leading::First)
}

/// `near` at 10.0.0.1/24 and 2001:db8::1/64, its peer `far` in a second namespace with
/// 10.0.0.2 and 2001:db8::2.
struct TwoHosts {
    /// A process that holds the second namespace open.
    holder: std::process::Child,
}

impl TwoHosts {
    async fn build() -> Self {
        let holder = std::process::Command::new("unshare")
            .args(["-n", "sleep", "60"])
            .stdin(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let hosts = TwoHosts { holder };
        run("ip link add near type veth peer name far");
        hosts.give_far().await;
        run("ip addr add 10.0.0.1/24 dev near");
        run("ip addr add 2001:db8::1/64 dev near nodad");
        run("ip link set near up");
        hosts.far("ip link set far up");
        hosts.far("ip addr add 10.0.0.2/24 dev far");
        hosts.far("ip addr add 2001:db8::2/64 dev far nodad");
        hosts
    }

    /// `unshare` takes a moment to enter its namespace; until then `far` would stay here.
    async fn give_far(&self) {
        let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let there = format!("/proc/{}/ns/net", self.holder.id());
        eventually("unshare has its namespace", || async {
            (std::fs::read_link(&there).unwrap() != here).then_some(())
        })
        .await;
        run(&format!("ip link set far netns {}", self.holder.id()));
    }

    fn far(&self, command: &str) -> String {
        run(&format!("nsenter -t {} -n {command}", self.holder.id()))
    }
}

impl Drop for TwoHosts {
    fn drop(&mut self) {
        // A holder that has ended by itself has nothing left to hold.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn in_runtime(test: impl Future<Output = ()>) {
    runtime::block_on(test).unwrap();
}

#[test]
fn vip_routes_are_made_adopted_and_removed() {
    if !own_network() {
        return;
    }
    in_runtime(async {
        run("ip tuntap add dev tap0 mode tap");
        let netlink = Netlink::open().unwrap();
        let tap = netlink.link_by_name("tap0").await.unwrap().unwrap();
        assert!(!tap.up);
        run("ip link set tap0 mtu 1450 up");
        let tap = netlink.link_by_name("tap0").await.unwrap().unwrap();
        assert_eq!((tap.mtu, tap.up, tap.ethernet), (1450, true, true));

        let vips: [VipPrefix; 4] =
            ["192.0.2.1", "2001:db8:1::1", "198.51.100.16/28", "2001:db8:2::10/124"]
                .map(|vip| vip.parse().unwrap());
        netlink.set_vip_routes(&vips.map(first), tap.index).await.unwrap();
        netlink.set_vip_routes(&vips.map(first), tap.index).await.unwrap();
        let mut present = netlink.vip_routes().await.unwrap();
        present.sort_unstable();
        let mut wanted: Vec<VipRoute> =
            vips.iter().flat_map(|vip| VipRoute::pair(*vip, tap.index)).collect();
        wanted.sort_unstable();
        assert_eq!(present, wanted);
        for vip in vips.iter().flat_map(VipPrefix::addresses) {
            let route = netlink.route_to(vip, None).await.unwrap();
            assert_eq!(route.interface, Some(tap.index), "{vip} {route:?}");
        }

        // The TAP dies with its process: what is left refuses packets, so nothing loops.
        run("ip link del tap0");
        for vip in vips.iter().flat_map(VipPrefix::addresses) {
            let route = netlink.route_to(vip, None).await.unwrap();
            assert_eq!(route.kind, RouteKind::Refused, "{vip} {route:?}");
        }

        // The next start has another TAP and one VIP less.
        run("ip tuntap add dev tap0 mode tap");
        let tap = netlink.link_by_name("tap0").await.unwrap().unwrap();
        run("ip link set tap0 up");
        netlink.set_vip_routes(&[first(vips[0])], tap.index).await.unwrap();
        let present = netlink.vip_routes().await.unwrap();
        assert_eq!(present.len(), 2, "{present:?}");
        assert!(present.iter().all(|r| r.vip == vips[0]), "{present:?}");

        netlink.remove_vip_routes(&vips, tap.index).await.unwrap();
        assert_eq!(netlink.vip_routes().await.unwrap(), []);
    });
}

#[test]
fn a_withdrawn_vip_has_no_route_that_is_exported_and_others_go_before_what_is_left() {
    if !own_network() {
        return;
    }
    in_runtime(async {
        run("ip tuntap add dev tap0 mode tap");
        run("ip link set tap0 up");
        run("ip tuntap add dev other mode tap");
        run("ip link set other up");
        let netlink = Netlink::open().unwrap();
        let index = async |name| netlink.link_by_name(name).await.unwrap().unwrap().index;
        let (tap, other) = (index("tap0").await, index("other").await);
        let vips = [ip("192.0.2.1"), ip("2001:db8:1::1")];
        let prefixes = vips.map(VipPrefix::host);
        let announced = prefixes.map(|vip| (vip, Leading::Announced(Reserve::BehindOthers)));
        let withdrawn = prefixes.map(|vip| (vip, Leading::Withdrawn(Reserve::BehindOthers)));
        let way = async |vip| netlink.route_to(vip, None).await.unwrap().interface;
        // What a routing daemon would export.
        let exported = async || {
            let routes = netlink.vip_routes().await.unwrap();
            routes.iter().filter(|r| r.tap.is_some() && r.reserve.is_none()).count()
        };

        netlink.set_vip_routes(&withdrawn, tap).await.unwrap();
        assert_eq!(exported().await, 0);
        for vip in vips {
            assert_eq!(way(vip).await, Some(tap), "nobody else has {vip}");
            // As BIRD does, which has it from another director.
            run(&format!("ip route add {vip} dev other metric 32 proto bird"));
            assert_eq!(way(vip).await, Some(other), "{vip}");
        }
        netlink.set_vip_routes(&announced, tap).await.unwrap();
        assert_eq!(exported().await, 2);
        for vip in vips {
            assert_eq!(way(vip).await, Some(tap), "{vip}");
        }
        let (missing, unwanted) = netlink.astray_vip_routes(&announced, tap).await.unwrap();
        assert_eq!((missing.len(), unwanted.len()), (0, 0), "{missing:?} {unwanted:?}");
        let (missing, unwanted) = netlink.astray_vip_routes(&withdrawn, tap).await.unwrap();
        assert_eq!((missing.len(), unwanted.len()), (0, 2), "{missing:?} {unwanted:?}");
        netlink.set_vip_routes(&withdrawn, tap).await.unwrap();
        assert_eq!(exported().await, 0);
        let (missing, unwanted) = netlink.astray_vip_routes(&announced, tap).await.unwrap();
        assert_eq!((missing.len(), unwanted.len()), (2, 0), "{missing:?} {unwanted:?}");

        assert!(netlink.foreign_routes(1).await.unwrap().is_empty());
        assert_eq!(netlink.foreign_routes(32).await.unwrap(), prefixes);
        // One whose real servers are checked from here is no longer left to the other director.
        let checked = prefixes.map(|vip| (vip, Leading::Withdrawn(Reserve::BeforeOthers)));
        let (missing, unwanted) = netlink.astray_vip_routes(&checked, tap).await.unwrap();
        assert_eq!((missing.len(), unwanted.len()), (2, 2), "{missing:?} {unwanted:?}");
        netlink.set_vip_routes(&checked, tap).await.unwrap();
        assert_eq!(exported().await, 0);
        for vip in vips {
            assert_eq!(way(vip).await, Some(tap), "checks of {vip} reach another director");
        }
        let (missing, unwanted) = netlink.astray_vip_routes(&checked, tap).await.unwrap();
        assert_eq!((missing.len(), unwanted.len()), (0, 0), "{missing:?} {unwanted:?}");
        // The blackhole and one to the TAP: none is left of the reserve before.
        assert_eq!(netlink.vip_routes().await.unwrap().len(), 4);
        netlink.set_vip_routes(&withdrawn, tap).await.unwrap();
        assert_eq!(way(vips[0]).await, Some(other), "checks have ended");

        netlink.remove_vip_routes(&prefixes, tap).await.unwrap();
        assert_eq!(netlink.vip_routes().await.unwrap(), []);
    });
}

#[test]
fn a_foreign_route_is_not_replaced() {
    if !own_network() {
        return;
    }
    in_runtime(async {
        run("ip tuntap add dev tap0 mode tap");
        run("ip link set tap0 up");
        run("ip route add 192.0.2.1/32 dev lo metric 1");
        let netlink = Netlink::open().unwrap();
        let tap = netlink.link_by_name("tap0").await.unwrap().unwrap();
        let vip = VipPrefix::host(ip("192.0.2.1"));
        let error = netlink.set_vip_routes(&[first(vip)], tap.index).await.unwrap_err();
        assert!(error.to_string().contains("which Adit did not make"), "{error}");
        assert!(run("ip route show 192.0.2.1").contains("dev lo"));
        assert_eq!(netlink.foreign_routes(1).await.unwrap(), [vip]);
        assert_eq!(netlink.link_by_name("nothing").await.unwrap(), None);
    });
}

#[test]
fn a_second_director_leaves_the_first_ones_routes_alone() {
    if !own_network() {
        return;
    }
    in_runtime(async {
        let netlink = Netlink::open().unwrap();
        let mut taps = Vec::new();
        for name in ["tap0", "tap1"] {
            run(&format!("ip tuntap add dev {name} mode tap"));
            run(&format!("ip link set {name} up"));
            taps.push(netlink.link_by_name(name).await.unwrap().unwrap().index);
        }
        let vips = [ip("192.0.2.1"), ip("2001:db8:1::1")].map(VipPrefix::host);
        netlink.set_vip_routes(&vips.map(first), taps[0]).await.unwrap();
        let mut before = netlink.vip_routes().await.unwrap();
        before.sort_unstable();

        let error = netlink.set_vip_routes(&vips.map(first), taps[1]).await.unwrap_err();
        assert!(error.to_string().contains("another director"), "{error}");
        netlink.remove_vip_routes(&vips, taps[1]).await.unwrap();
        let mut after = netlink.vip_routes().await.unwrap();
        after.sort_unstable();
        assert_eq!(after, before);
    });
}

fn by_ipip(reals: &[IpAddr]) -> Wanted {
    let reals = reals.iter().map(|real| (*real, RealTunnel::Ipip)).collect();
    Wanted { reals, ..Wanted::default() }
}

#[test]
fn egress_follows_neighbours_policies_and_devices() {
    if !own_network() {
        return;
    }
    in_runtime(async {
        let hosts = TwoHosts::build().await;
        run("ip route add 10.20.0.0/16 via 10.0.0.2 mtu 1400");
        run("ip tuntap add dev tun0 mode tun");
        run("ip link set tun0 up");
        run("ip route add 10.30.0.0/16 dev tun0");
        let netlink = Netlink::open().unwrap();
        let reals = ["10.20.0.11", "2001:db8::2", "10.30.0.1", "10.99.0.1", "10.0.0.1"].map(ip);
        let wanted = by_ipip(&reals);
        let look = || netlink.survey(&wanted);

        let first = look().await.unwrap();
        let reason = |i: usize| first.paths[i].egress;
        assert_eq!(reason(0), Egress::Kernel(KernelReason::Unresolved));
        assert_eq!(first.paths[0].mtu, 1400);
        assert_eq!(first.paths[0].sources, [ip("10.0.0.1")]);
        assert_eq!(first.paths[0].next_hop, Some(ip("10.0.0.2")));
        assert_eq!(first.paths[1].mtu, 1500);
        assert_eq!(reason(2), Egress::Kernel(KernelReason::NotEthernet));
        assert_eq!(reason(3), Egress::Kernel(KernelReason::NoRoute));
        assert_eq!(reason(4), Egress::Kernel(KernelReason::Local));
        let hops: Vec<IpAddr> = first.next_hops.iter().map(|(_, hop)| *hop).collect();
        assert_eq!(hops, [ip("10.0.0.2"), ip("2001:db8::2")]);

        let mut watch = HostWatch::open().unwrap();
        for key in &first.next_hops {
            netlink.keep_neighbour(*key).await.unwrap();
        }
        let heard = async {
            loop {
                if let HostChange::Neighbour(key) = watch.changed().await.unwrap() {
                    return key;
                }
            }
        };
        let key = tokio::time::timeout(std::time::Duration::from_secs(10), heard).await.unwrap();
        assert!(first.next_hops.contains(&key), "{key:?}");
        let direct = |egress: Egress| matches!(egress, Egress::Direct(_));
        let resolved = eventually("both next hops answer", || async {
            let survey = look().await.unwrap();
            survey.paths[..2].iter().all(|p| direct(p.egress)).then_some(survey)
        })
        .await;
        let Egress::Direct(path) = resolved.paths[0].egress else { unreachable!() };
        let mac = path.next_hop_mac.map(|b| format!("{b:02x}")).join(":");
        assert!(hosts.far("ip link show far").contains(&mac));
        assert!(run("ip neigh show 10.0.0.2").contains("managed"));
        // What the kernel says is believed, not what it was asked: an older one would skip it.
        let managed = || async { netlink.neighbours().await.unwrap()[&first.next_hops[0]].managed };
        assert!(managed().await);
        run("ip neigh replace 10.0.0.2 dev near lladdr 02:00:00:00:00:09 nud reachable");
        assert!(!managed().await);

        netlink.release_neighbour(first.next_hops[0]).await.unwrap();
        netlink.release_neighbour(first.next_hops[0]).await.unwrap();
        assert!(!run("ip neigh show 10.0.0.2").contains("managed"));
        run("ip link set near down");
        let down = look().await.unwrap();
        assert!(!direct(down.paths[0].egress), "{down:?}");
    });
}

#[test]
fn an_ipsec_policy_takes_egress_to_the_kernel() {
    if !own_network() {
        return;
    }
    in_runtime(async {
        assert_eq!(XfrmPolicies::read().await.unwrap(), XfrmPolicies::default());
        // The policies' socket alone: links and routes have their own news while hosts are built.
        let policies = super::xfrm::watch().unwrap();
        let _hosts = TwoHosts::build().await;
        run("ip neigh add 10.0.0.2 dev near lladdr 02:00:00:00:00:09");
        let netlink = Netlink::open().unwrap();
        let wanted = by_ipip(&[ip("10.0.0.2")]);
        let look = || async { netlink.survey(&wanted).await.unwrap().paths[0].egress };
        assert!(matches!(look().await, Egress::Direct(_)));

        let policy = "src 0.0.0.0/0 dst 10.0.0.0/24 proto 4 dir out";
        run(&format!("ip xfrm policy add {policy} tmpl proto esp mode transport"));
        let ten = std::time::Duration::from_secs(10);
        tokio::time::timeout(ten, policies.recv_from_full()).await.unwrap().unwrap();
        assert_eq!(look().await, Egress::Kernel(KernelReason::Ipsec));
        run(&format!("ip xfrm policy del {policy}"));
        assert!(matches!(look().await, Egress::Direct(_)));

        // Each kind of tunnel minds those for its own packets. What cannot be sent through them is
        // not sent.
        let kinds = [
            RealTunnel::Ipip,
            RealTunnel::Gre { checksum: false },
            RealTunnel::Gue { port: 6080, checksum: false },
            RealTunnel::Direct,
        ];
        let reals = kinds.iter().map(|kind| (ip("10.0.0.2"), *kind)).collect();
        let vips = vec![ip("198.51.100.10")];
        let all = Wanted { reals, vips, ..Wanted::default() };
        for (selector, [ipip, gre, gue, direct]) in [
            ("dst 10.0.0.2 proto 4", [true, false, false, true]),
            ("dst 10.0.0.2 proto gre", [false, true, false, true]),
            ("dst 10.0.0.2 proto udp dport 6080", [false, false, true, true]),
            ("dst 198.51.100.10", [false, false, false, true]),
        ] {
            let policy = format!("src 0.0.0.0/0 {selector} dir out");
            run(&format!("ip xfrm policy add {policy} tmpl proto esp mode transport"));
            let paths = netlink.survey(&all).await.unwrap().paths;
            let none = Egress::None(KernelReason::Ipsec);
            let egress = |place: usize| paths[place].egress;
            assert_eq!(egress(0) == Egress::Kernel(KernelReason::Ipsec), ipip, "{selector}");
            for (place, concerned) in [(1, gre), (2, gue), (3, direct)] {
                assert_eq!(egress(place) == none, concerned, "{selector}: {:?}", paths[place]);
                assert_eq!(matches!(egress(place), Egress::Direct(_)), !concerned, "{selector}");
            }
            run(&format!("ip xfrm policy del {policy}"));
        }

        // A policy for incoming packets is not in the way.
        run(
            "ip xfrm policy add src 0.0.0.0/0 dst 10.0.0.0/24 dir in tmpl proto esp mode transport",
        );
        assert!(matches!(look().await, Egress::Direct(_)));
        run("ip xfrm policy setdefault out block");
        assert_eq!(look().await, Egress::Kernel(KernelReason::Ipsec));
    });
}
