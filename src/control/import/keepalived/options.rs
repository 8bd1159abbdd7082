//! Every option of keepalived.conf(5) that concerns IPVS, and what becomes of it. Tables: what is
//! not in them is not understood.

use super::super::report::{Kind, Remark};

/// What becomes of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Taken over, as far as it can be; the code says how.
    Read(Meaning),
    /// Left out for this reason.
    Said(&'static Reason),
}

/// What an option of a virtual or real server means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Scheduler,
    SchedulerFlag,
    Method,
    PersistenceTimeout,
    PersistenceMask,
    PersistenceEngine,
    Protocol,
    Name,
    OnePacket,
    Weight,
    Upper,
    Lower,
    RealServer,
    /// An option about checks, by whichever kind.
    Check(CheckOption),
    /// The block of a check by TCP.
    TcpCheck,
}

/// What an option about checks means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckOption {
    Port,
    Interval,
    Timeout,
    Retries,
    RetryDelay,
    Alpha,
}

/// Why something is left out, and what to do instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reason {
    pub(super) kind: Kind,
    pub(super) why: &'static str,
    pub(super) instead: &'static str,
}

impl Reason {
    pub(super) fn remark(&self) -> Remark {
        Remark::new(self.kind, self.why, self.instead)
    }
}

static CHECKS: Reason = Reason {
    kind: Kind::Later,
    why: "of checks only those by TCP are there yet, through the tunnel to the VIP",
    instead: "check = { kind = \"tcp\" } in the service, as docs/health.md says",
};
/// Of a check whose real server is left out.
pub(super) static UNUSED_CHECK: Reason = Reason {
    kind: Kind::LeftOut,
    why: "its real server is not imported",
    instead: "as said there",
};
/// Of options about checks where none is imported.
pub(super) static CHECK_OPTIONS: Reason = Reason {
    kind: Kind::LeftOut,
    why: "it belongs to checks, and only those by TCP are imported",
    instead: "`interval`, `timeout`, `fall`, `rise` and `initial` of `check` in the service, as \
              docs/health.md says",
};
static QUORUM: Reason = Reason {
    kind: Kind::LeftOut,
    why: "one real server that is up is enough for a service",
    instead: "nothing",
};
static WARMUP: Reason = Reason {
    kind: Kind::LeftOut,
    why: "all are checked within a moment after the start, and from then on a little earlier or later \
          than the interval says",
    instead: "nothing",
};
static SUSPEND: Reason = Reason {
    kind: Kind::LeftOut,
    why: "checks go on as long as the director runs",
    instead: "nothing",
};
static CONNECT_IP: Reason = Reason {
    kind: Kind::LeftOut,
    why: "a check goes the way of clients: through the real server's tunnel to the VIP",
    instead: "see that the service listens on the VIP",
};
static BIND: Reason = Reason {
    kind: Kind::LeftOut,
    why: "checks come from the outer source towards the real server, and from ports of their own",
    instead: "`source` and `ports` in [health], where that is not right",
};
static LOG_FAILURES: Reason = Reason {
    kind: Kind::LeftOut,
    why: "failed checks are counted, and logged when they change something",
    instead: "nothing: `adit list --health` and the metrics `adit_check_…` have them",
};
static NOTIFY: Reason = Reason {
    kind: Kind::LeftOut,
    why: "it acts on what checks find, and nothing is called for that here",
    instead: "let your monitoring call it: the metrics `adit_check_…` and the log say what checks find",
};
static SORRY: Reason = Reason {
    kind: Kind::Later,
    why: "nothing stands in for a service yet whose real servers are all down: its new connections are \
          dropped",
    instead: "until then, when all have failed: give it an entry of its own and `adit reload`",
};
static INHIBIT: Reason = Reason {
    kind: Kind::LeftOut,
    why: "connections of a real server that is taken out go on here, as this option asks",
    instead: "nothing",
};
static VRRP: Reason = Reason {
    kind: Kind::Later,
    why: "failover between directors comes in a later release",
    instead: "until then leave it with keepalived, without the virtual_server blocks; the VIPs of \
              services are not to be addresses of this host",
};
static BFD: Reason = Reason {
    kind: Kind::Later,
    why: "it belongs to failover between directors, which comes in a later release, and to checks",
    instead: "leave it with keepalived",
};
static TRACKED: Reason = Reason {
    kind: Kind::Later,
    why: "it belongs to failover between directors, which comes in a later release, and to checks",
    instead: "leave it with keepalived",
};
static HOST: Reason = Reason {
    kind: Kind::LeftOut,
    why: "addresses, routes and rules of the host are not Adit's",
    instead: "set them up with the system's own means, or leave them with keepalived",
};
static PROCESS: Reason = Reason {
    kind: Kind::LeftOut,
    why: "it is about keepalived's own processes",
    instead: "nothing, or the like of it in a drop-in of adit.service",
};
static GLOBAL: Reason = Reason {
    kind: Kind::LeftOut,
    why: "it is about keepalived itself, its mails, scripts and VRRP",
    instead: "nothing, unless keepalived goes on to do these",
};
static SNMP: Reason = Reason {
    kind: Kind::LeftOut,
    why: "real servers have no names here",
    instead: "tell them apart by address, as `adit list` does",
};
static INTERNAL: Reason = Reason {
    kind: Kind::LeftOut,
    why: "it is about how the kernel stores a service",
    instead: "nothing",
};
static FAMILY: Reason = Reason {
    kind: Kind::LeftOut,
    why: "it is about services by firewall mark; here the VIP says its family",
    instead: "nothing",
};

type Table = &'static [(&'static str, Fate)];

use Fate::{Read, Said};

/// Blocks and options outside of any block; those of `virtual_server` and its groups are read.
pub(super) static TOP: &[(&str, &Reason)] = &[
    ("vrrp_instance", &VRRP),
    ("vrrp_sync_group", &VRRP),
    ("vrrp_script", &VRRP),
    ("vrrp_track_process", &VRRP),
    ("track_process", &VRRP),
    ("vrrp_track_file", &TRACKED),
    ("track_file", &TRACKED),
    ("track_group", &VRRP),
    ("garp_group", &VRRP),
    ("linkbeat_interfaces", &VRRP),
    ("interface_up_down_delays", &VRRP),
    ("bfd_instance", &BFD),
    ("static_ipaddress", &HOST),
    ("static_routes", &HOST),
    ("static_rules", &HOST),
    ("SSL", &CHECKS),
    ("net_namespace", &PROCESS),
    ("net_namespace_ipvs", &PROCESS),
    ("namespace_with_ipsets", &PROCESS),
    ("instance", &PROCESS),
    ("use_pid_dir", &PROCESS),
    ("child_wait_time", &PROCESS),
    ("random_seed", &PROCESS),
];

/// What an option of `global_defs` is left out for, but for `lvs_timeouts`.
pub(super) static GLOBAL_OPTION: &Reason = &GLOBAL;

/// Options of `virtual_server`.
pub(super) static VIRTUAL_SERVER: Table = &[
    ("lvs_sched", Read(Meaning::Scheduler)),
    ("lb_algo", Read(Meaning::Scheduler)),
    ("flag-1", Read(Meaning::SchedulerFlag)),
    ("flag-2", Read(Meaning::SchedulerFlag)),
    ("flag-3", Read(Meaning::SchedulerFlag)),
    ("sh-port", Read(Meaning::SchedulerFlag)),
    ("sh-fallback", Read(Meaning::SchedulerFlag)),
    ("mh-port", Read(Meaning::SchedulerFlag)),
    ("mh-fallback", Read(Meaning::SchedulerFlag)),
    ("hashed", Said(&INTERNAL)),
    ("ops", Read(Meaning::OnePacket)),
    ("lvs_method", Read(Meaning::Method)),
    ("lb_kind", Read(Meaning::Method)),
    ("persistence_engine", Read(Meaning::PersistenceEngine)),
    ("persistence_timeout", Read(Meaning::PersistenceTimeout)),
    ("persistence_granularity", Read(Meaning::PersistenceMask)),
    ("protocol", Read(Meaning::Protocol)),
    ("snmp_name", Read(Meaning::Name)),
    ("weight", Read(Meaning::Weight)),
    ("real_server", Read(Meaning::RealServer)),
    ("ip_family", Said(&FAMILY)),
    ("ha_suspend", Said(&SUSPEND)),
    ("smtp_alert", Said(&NOTIFY)),
    ("virtualhost", Said(&CHECKS)),
    ("alpha", Read(Meaning::Check(CheckOption::Alpha))),
    ("omega", Said(&NOTIFY)),
    ("quorum", Said(&QUORUM)),
    ("hysteresis", Said(&QUORUM)),
    ("quorum_up", Said(&NOTIFY)),
    ("quorum_down", Said(&NOTIFY)),
    ("sorry_server", Said(&SORRY)),
    ("sorry_server_inhibit", Said(&SORRY)),
    ("sorry_server_lvs_method", Said(&SORRY)),
    ("connect_timeout", Read(Meaning::Check(CheckOption::Timeout))),
    ("retry", Read(Meaning::Check(CheckOption::Retries))),
    ("delay_before_retry", Read(Meaning::Check(CheckOption::RetryDelay))),
    ("warmup", Said(&WARMUP)),
    ("delay_loop", Read(Meaning::Check(CheckOption::Interval))),
    ("inhibit_on_failure", Said(&INHIBIT)),
];

/// Options of `real_server`. Other checks than by TCP are reported with all that is in them.
pub(super) static REAL_SERVER: Table = &[
    ("weight", Read(Meaning::Weight)),
    ("lvs_method", Read(Meaning::Method)),
    ("uthreshold", Read(Meaning::Upper)),
    ("lthreshold", Read(Meaning::Lower)),
    ("notify_up", Said(&NOTIFY)),
    ("notify_down", Said(&NOTIFY)),
    ("smtp_alert", Said(&NOTIFY)),
    ("virtualhost", Said(&CHECKS)),
    ("snmp_name", Said(&SNMP)),
    ("alpha", Read(Meaning::Check(CheckOption::Alpha))),
    ("connect_timeout", Read(Meaning::Check(CheckOption::Timeout))),
    ("retry", Read(Meaning::Check(CheckOption::Retries))),
    ("delay_before_retry", Read(Meaning::Check(CheckOption::RetryDelay))),
    ("warmup", Said(&WARMUP)),
    ("delay_loop", Read(Meaning::Check(CheckOption::Interval))),
    ("inhibit_on_failure", Said(&INHIBIT)),
    ("HTTP_GET", Said(&CHECKS)),
    ("SSL_GET", Said(&CHECKS)),
    ("TCP_CHECK", Read(Meaning::TcpCheck)),
    ("SMTP_CHECK", Said(&CHECKS)),
    ("DNS_CHECK", Said(&CHECKS)),
    ("UDP_CHECK", Said(&CHECKS)),
    ("PING_CHECK", Said(&CHECKS)),
    ("MISC_CHECK", Said(&CHECKS)),
    ("BFD_CHECK", Said(&CHECKS)),
    ("FILE_CHECK", Said(&CHECKS)),
];

/// Options of `TCP_CHECK`.
pub(super) static TCP_CHECK: Table = &[
    ("connect_ip", Said(&CONNECT_IP)),
    ("connect_port", Read(Meaning::Check(CheckOption::Port))),
    ("bindto", Said(&BIND)),
    ("bind_if", Said(&BIND)),
    ("bind_port", Said(&BIND)),
    ("fwmark", Said(&BIND)),
    ("alpha", Read(Meaning::Check(CheckOption::Alpha))),
    ("connect_timeout", Read(Meaning::Check(CheckOption::Timeout))),
    ("retry", Read(Meaning::Check(CheckOption::Retries))),
    ("delay_before_retry", Read(Meaning::Check(CheckOption::RetryDelay))),
    ("warmup", Said(&WARMUP)),
    ("delay_loop", Read(Meaning::Check(CheckOption::Interval))),
    ("log_all_failures", Said(&LOG_FAILURES)),
];

/// What becomes of an option, if the table has it.
pub(super) fn fate(table: Table, name: &str) -> Option<Fate> {
    table.iter().find(|(option, _)| *option == name).map(|(_, fate)| *fate)
}

/// Every option that is known, for the documentation to be held against.
#[must_use]
pub fn known() -> Vec<&'static str> {
    let blocks =
        ["virtual_server", "virtual_server_group", "global_defs", "lvs_timeouts", "fwmark"];
    let top = TOP.iter().map(|(name, _)| *name);
    let options = VIRTUAL_SERVER.iter().chain(REAL_SERVER).chain(TCP_CHECK).map(|(name, _)| *name);
    blocks.into_iter().chain(top).chain(options).collect()
}

/// Options outside of `virtual_server` that differ from others in nothing but their names.
pub const TREATED_ALIKE: &[&str] = &[
    "vrrp_sync_group",
    "vrrp_track_process",
    "track_process",
    "vrrp_track_file",
    "track_group",
    "garp_group",
    "linkbeat_interfaces",
    "interface_up_down_delays",
    "static_routes",
    "static_rules",
    "net_namespace",
    "net_namespace_ipvs",
    "namespace_with_ipsets",
    "instance",
    "use_pid_dir",
    "child_wait_time",
    "random_seed",
];
