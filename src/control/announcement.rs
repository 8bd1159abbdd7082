//! Whether a VIP is announced by its route: while it can serve, and not if that changes too often.
//!
//! A VIP that cannot serve any more is withdrawn at once. It comes back at once too, unless its
//! announcements do not last: routers far away count each change, and some leave out for an hour
//! what changes too often (RFC 2439, RFC 7196). So one that was withdrawn for the second time within
//! [`LASTS`] of its announcement waits for a second, then for two, up to [`LONGEST_HOLD`].

use crate::control::netlink::vip_routes::{Leading, Reserve};
use crate::dataplane::snapshot::{Link, Snapshot};
use crate::dataplane::time::Time;
use crate::dataplane::vip_prefix::VipPrefix;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// An announcement that has lasted for so long is no flap, whatever ends it.
const LASTS: Duration = Duration::from_secs(60);
/// The first hold: longer than routers take to choose another way, so that they are not met in the
/// middle of it.
const FIRST_HOLD: Duration = Duration::from_secs(1);
/// The longest hold: as long as an announcement must last for there to be none.
const LONGEST_HOLD: Duration = LASTS;

/// Whether a VIP can serve, and what it lacks if not: what is lacking later in this order is nearer
/// to serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ability {
    /// No service has it; connections of one that was removed may go on.
    NoService,
    /// Its services have no real server.
    NoRealServer,
    /// All real servers are drained or down.
    NoneTakesFlows,
    /// Those that take new connections cannot be reached from here.
    NoWay,
    /// A real server takes new connections and there is a way to it.
    Serves,
}

/// What each VIP with a service can do, as the worker's snapshot says. Full real servers count
/// as able: their connections end.
#[must_use]
pub fn abilities(snapshot: &Snapshot) -> BTreeMap<VipPrefix, Ability> {
    let mut found = BTreeMap::new();
    for service in snapshot.services.services() {
        let best = found.entry(service.prefix).or_insert(Ability::NoRealServer);
        for (member, destination) in service.members.iter().zip(&service.destinations) {
            if *best == Ability::Serves {
                break;
            }
            let real = || snapshot.real(snapshot.destination(*destination)?.real);
            let ability = match (member.admitted_weight(), real()) {
                (0, _) => Ability::NoneTakesFlows,
                (_, Some(real)) if real.link != Link::None => Ability::Serves,
                (_, _) => Ability::NoWay,
            };
            *best = ability.max(*best);
        }
    }
    found
}

/// Why a VIP is not announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawn {
    /// It cannot serve.
    Cannot(Ability),
    /// It could, and has been withdrawn too often: it waits until then.
    Held(Time),
    /// The director stops.
    Stopping,
}

impl fmt::Display for Withdrawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Withdrawn::Cannot(Ability::NoService) => "no service has it",
            Withdrawn::Cannot(Ability::NoRealServer) => "its services have no real server",
            Withdrawn::Cannot(Ability::NoneTakesFlows) => "no real server takes new connections",
            Withdrawn::Cannot(Ability::NoWay) => {
                "there is no way to the real servers that take new connections"
            }
            Withdrawn::Held(_) => "its announcements did not last, so it is held back for a while",
            Withdrawn::Cannot(Ability::Serves) | Withdrawn::Stopping => "the director stops",
        })
    }
}

/// The announcement of one VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// Why it is not announced; `None` while it is.
    pub withdrawn: Option<Withdrawn>,
    /// How often it was withdrawn, since the director started or the VIP came.
    pub withdrawals: u64,
    /// Whether nobody has looked yet.
    new: bool,
    /// Announcements in a row that did not last.
    short: u32,
    /// When it was announced last.
    announced: Time,
    /// Not to be announced before that.
    earliest: Time,
}

impl Announcement {
    /// One that was never made.
    const NEW: Self = Announcement {
        withdrawn: Some(Withdrawn::Cannot(Ability::NoService)),
        withdrawals: 0,
        new: true,
        short: 0,
        announced: Time::ZERO,
        earliest: Time::ZERO,
    };

    /// Takes note of what the VIP can do now.
    fn look(&mut self, now: Time, ability: Ability) {
        if ability != Ability::Serves {
            self.withdraw(now, Withdrawn::Cannot(ability));
        } else if self.withdrawn.is_some() {
            if now < self.earliest {
                self.withdrawn = Some(Withdrawn::Held(self.earliest));
            } else {
                (self.withdrawn, self.announced) = (None, now);
            }
        }
    }

    fn withdraw(&mut self, now: Time, why: Withdrawn) {
        if self.withdrawn.replace(why).is_some() {
            return;
        }
        self.withdrawals += 1;
        let lasted = now.saturating_since(self.announced) >= LASTS;
        self.short = if lasted { 0 } else { self.short.saturating_add(1) };
        self.earliest = now + hold(self.short);
    }
}

/// How long a VIP is held back whose last announcements, so many, did not last.
fn hold(short: u32) -> Duration {
    let doublings = short.checked_sub(2).map(|n| n.min(16));
    doublings.map_or(Duration::ZERO, |n| (FIRST_HOLD * (1 << n)).min(LONGEST_HOLD))
}

/// The announcements of all VIPs that are led to the TAP.
#[derive(Debug, Default)]
pub struct Announcements {
    vips: BTreeMap<VipPrefix, Announcement>,
    stopping: bool,
}

impl Announcements {
    /// Follows these VIPs from now on and no others.
    pub fn follow(&mut self, vips: impl IntoIterator<Item = VipPrefix>) {
        let mut before = std::mem::take(&mut self.vips);
        let kept = |vip| (vip, before.remove(&vip).unwrap_or(Announcement::NEW));
        self.vips = vips.into_iter().map(kept).collect();
    }

    /// Withdraws all of them for good.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Looks at what they can do now, and gives those that are announced from now on, those that are
    /// not any more, and those that are new.
    pub fn look(
        &mut self,
        now: Time,
        abilities: &BTreeMap<VipPrefix, Ability>,
    ) -> Vec<(VipPrefix, Announcement)> {
        let mut changed = Vec::new();
        for (vip, announcement) in &mut self.vips {
            let before = announcement.withdrawn.is_none();
            if self.stopping {
                announcement.withdraw(now, Withdrawn::Stopping);
            } else {
                let ability = abilities.get(vip).copied().unwrap_or(Ability::NoService);
                announcement.look(now, ability);
            }
            let new = std::mem::take(&mut announcement.new);
            if new || before != announcement.withdrawn.is_none() {
                changed.push((*vip, *announcement));
            }
        }
        changed
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (VipPrefix, &Announcement)> {
        self.vips.iter().map(|(vip, announcement)| (*vip, announcement))
    }

    /// How each is to be led to the TAP, with a route in reserve as `reserve` says.
    #[must_use]
    pub fn leading(&self, reserve: impl Fn(VipPrefix) -> Reserve) -> Vec<(VipPrefix, Leading)> {
        let leading = |vip, announcement: &Announcement| match announcement.withdrawn {
            None => Leading::Announced(reserve(vip)),
            Some(_) => Leading::Withdrawn(reserve(vip)),
        };
        self.iter().map(|(vip, announcement)| (vip, leading(vip, announcement))).collect()
    }
}

#[cfg(test)]
mod tests;
