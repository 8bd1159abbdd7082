use super::*;
use crate::dataplane::conntrack::Timeouts;
use crate::dataplane::hash::HashKey;
use crate::dataplane::ids::{DestinationId, RealId, VipId};
use crate::dataplane::scheduler::table::TableCache;
use crate::dataplane::scheduler::{Member, SchedulerKind};
use crate::dataplane::service::{DfPolicy, Ports, Protocol, Service, ServiceTable};
use crate::dataplane::snapshot::{Destination, RealServer};
use crate::dataplane::verdict::EgressId;
use adit_tunnel::OuterTemplate;
use std::net::IpAddr;

fn real(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn vip(last: u8) -> VipPrefix {
    VipPrefix::host([192, 0, 2, last].into())
}

const ANNOUNCED: Leading = Leading::Announced(Reserve::BehindOthers);
const WITHDRAWN: Leading = Leading::Withdrawn(Reserve::BehindOthers);

const WAY: Link = Link::Kernel { egress: EgressId(1) };

fn up(last: u8) -> Member {
    Member::up(real(last), 100)
}

/// A snapshot of services, each a VIP and its members with the ways to them.
fn snapshot(services: &[(u8, &[(Member, Link)])]) -> Snapshot {
    let (mut table, mut destinations, mut reals) = (Vec::new(), Vec::new(), Vec::new());
    for (number, members) in services {
        let mut ids = Vec::new();
        for (member, link) in *members {
            let template = OuterTemplate::new(real(254), member.address, 64).unwrap();
            let id = RealId(u32::try_from(reals.len()).unwrap());
            reals.push(Some(RealServer {
                outers: template.into(),
                link: *link,
                link_mtu: 1500,
                cookie_secrets: [0; 2],
            }));
            ids.push(DestinationId(id.0));
            destinations.push(Some(Destination {
                real: id,
                vip: VipId(1),
                timeouts: Timeouts::default(),
                df: DfPolicy::Copy,
                persistence: None,
            }));
        }
        let members: Vec<Member> = members.iter().map(|(member, _)| *member).collect();
        let mut tables = TableCache::new(HashKey::DEFAULT);
        table.push(Service {
            name: "db".into(),
            prefix: vip(*number),
            vips: [VipId(1)].into(),
            protocol: Protocol::Tcp,
            ports: Ports::Any,
            scheduler: SchedulerKind::Wrr.build(&[], &members, &mut tables, None).unwrap(),
            members: members.into(),
            destinations: ids.into(),
            thresholds: Box::default(),
            admission: None,
            persistence: None,
            timeouts: Timeouts::default(),
            df: DfPolicy::Copy,
            one_packet: false,
        });
    }
    Snapshot {
        services: ServiceTable::new(table),
        destinations: destinations.into(),
        reals: reals.into(),
        ..Snapshot::default()
    }
}

#[test]
fn a_vip_serves_while_one_member_takes_flows_and_has_a_way() {
    let down = Member { down: true, ..up(1) };
    let draining = Member { draining: true, ..up(1) };
    let nothing_left = Member { effective_weight: 0, ..up(1) };
    let drained = Member::up(real(1), 0);
    // Members of one service of the VIP, and what that makes of it.
    let cases: [(&[(Member, Link)], Ability); 9] = [
        (&[], Ability::NoRealServer),
        (&[(up(1), WAY)], Ability::Serves),
        (&[(up(1), Link::None)], Ability::NoWay),
        (&[(down, WAY)], Ability::NoneTakesFlows),
        (&[(draining, WAY)], Ability::NoneTakesFlows),
        (&[(nothing_left, WAY)], Ability::NoneTakesFlows),
        (&[(drained, WAY), (up(2), WAY)], Ability::Serves),
        // The one that could is not the one that is reached.
        (&[(drained, WAY), (up(2), Link::None)], Ability::NoWay),
        (&[(up(1), Link::None), (down, WAY), (up(3), WAY)], Ability::Serves),
    ];
    for (members, ability) in cases {
        let found = abilities(&snapshot(&[(1, members)]));
        assert_eq!(found, BTreeMap::from([(vip(1), ability)]), "{members:?}");
    }
}

#[test]
fn one_service_of_a_vip_is_enough_and_vips_are_apart() {
    let services: [(u8, &[(Member, Link)]); 4] =
        [(1, &[]), (1, &[(up(1), WAY)]), (1, &[(up(2), Link::None)]), (2, &[(up(3), Link::None)])];
    let found = abilities(&snapshot(&services));
    assert_eq!(found, BTreeMap::from([(vip(1), Ability::Serves), (vip(2), Ability::NoWay)]));
}

/// One VIP, and time.
struct Walk {
    announcements: Announcements,
    now: Time,
    new: bool,
}

impl Walk {
    fn new() -> Self {
        let mut announcements = Announcements::default();
        announcements.follow([vip(1)]);
        Walk { announcements, now: Time(5_000_000_000), new: true }
    }

    /// Lets time go by, looks, and says whether the VIP is announced.
    fn after(&mut self, seconds: f64, ability: Ability) -> bool {
        self.now = self.now + Duration::from_secs_f64(seconds);
        let before = self.leading();
        let changed = self.announcements.look(self.now, &BTreeMap::from([(vip(1), ability)]));
        let new = std::mem::take(&mut self.new);
        let told = new || before != self.leading();
        assert_eq!(changed.len(), usize::from(told), "{changed:?}");
        self.leading() == ANNOUNCED
    }

    fn leading(&self) -> Leading {
        let [(_, leading)] = self.announcements.leading(|_| Reserve::BehindOthers)[..] else {
            panic!("one VIP")
        };
        leading
    }

    fn why(&self) -> Option<Withdrawn> {
        self.announcements.iter().next().unwrap().1.withdrawn
    }
}

#[test]
fn a_vip_is_withdrawn_at_once_and_comes_back_at_once_where_announcements_last() {
    let mut walk = Walk::new();
    assert_eq!(walk.leading(), WITHDRAWN, "nobody has looked");
    assert!(walk.after(0.0, Ability::Serves));
    for _ in 0..100 {
        for cannot in [Ability::NoService, Ability::NoneTakesFlows, Ability::NoWay] {
            assert!(!walk.after(60.0, cannot));
            assert_eq!(walk.why(), Some(Withdrawn::Cannot(cannot)));
            assert!(walk.after(0.0, Ability::Serves), "without a hold");
        }
    }
    assert_eq!(walk.announcements.iter().next().unwrap().1.withdrawals, 300);
}

#[test]
fn what_flaps_is_held_back_longer_each_time_and_forgiven_when_it_lasts() {
    let mut walk = Walk::new();
    assert!(walk.after(0.0, Ability::Serves));
    for hold in [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0] {
        assert!(!walk.after(59.9, Ability::NoWay), "at once, whatever came before");
        if hold > 0.0 {
            assert!(!walk.after(hold - 0.01, Ability::Serves), "{hold}");
            assert!(matches!(walk.why(), Some(Withdrawn::Held(_))), "{:?}", walk.why());
            // What cannot serve is not said to be held.
            assert!(!walk.after(0.0, Ability::NoRealServer));
            assert_eq!(walk.why(), Some(Withdrawn::Cannot(Ability::NoRealServer)));
        }
        assert!(walk.after(0.01, Ability::Serves), "after a hold of {hold}");
    }
    assert!(!walk.after(60.0, Ability::NoWay));
    assert!(walk.after(0.0, Ability::Serves), "the last announcement has lasted");
}

#[test]
fn a_director_that_stops_announces_nothing_any_more() {
    let mut walk = Walk::new();
    assert!(walk.after(0.0, Ability::Serves));
    walk.announcements.stop();
    assert!(!walk.after(0.0, Ability::Serves));
    assert_eq!(walk.why(), Some(Withdrawn::Stopping));
    assert!(!walk.after(1000.0, Ability::Serves));
}

#[test]
fn a_vip_that_stays_keeps_its_announcement_and_one_that_left_is_new() {
    let all = BTreeMap::from([(vip(1), Ability::Serves), (vip(2), Ability::Serves)]);
    let mut announcements = Announcements::default();
    announcements.follow([vip(1)]);
    announcements.look(Time(1), &all);
    announcements.follow([vip(1), vip(2)]);
    assert_eq!(
        announcements.leading(|_| Reserve::BehindOthers),
        [(vip(1), ANNOUNCED), (vip(2), WITHDRAWN)],
        "the new one was not looked at"
    );
    announcements.look(Time(2), &all);
    announcements.follow([vip(2)]);
    announcements.follow([vip(1), vip(2)]);
    let leading = [(vip(1), WITHDRAWN), (vip(2), ANNOUNCED)];
    assert_eq!(announcements.leading(|_| Reserve::BehindOthers), leading);
    // A VIP without a service, whose connections go on.
    announcements.look(Time(3), &BTreeMap::from([(vip(2), Ability::Serves)]));
    assert_eq!(announcements.leading(|_| Reserve::BehindOthers), leading);
}
