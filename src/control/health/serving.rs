//! Whether services can serve, by weights and checks.

use super::Board;
use crate::control::config::Config;
use crate::control::finding::Finding;
use crate::dataplane::scheduler::Member;
use crate::dataplane::service::{Service, ServiceTable};

/// Services that checks have left without a real server, or not given one yet.
pub fn without_server(config: &Config, services: &ServiceTable, board: &Board) -> Vec<Finding> {
    let checked = |name: &str| {
        config.services.iter().any(|service| service.name == name && service.check.is_some())
    };
    // Nothing has failed: the first checks have not ended yet.
    let is_first = |service: &Service| {
        let vip = service.prefix.address();
        let mut waiting = service.members.iter().filter(|member| waits(member));
        waiting.all(|member| board.awaits_first_check(&service.name, vip, member.address))
    };
    services
        .services()
        .iter()
        .filter(|service| service.members.iter().all(|member| !member.is_eligible()))
        .filter(|service| service.members.iter().any(waits))
        .filter(|service| checked(&service.name))
        .map(|service| {
            let help = "new connections are dropped as no_real_server until a check succeeds; those \
                        there are go on:\nadit list --health";
            let name = &service.name;
            if is_first(service) {
                Finding::warning(format!("service {name}: its first checks are still running"), help)
            } else {
                Finding::error(format!("service {name}: no real server is up"), help)
            }
        })
        .collect()
}

/// Whether a real server is down, or not checked yet, and would take new flows otherwise.
fn waits(member: &Member) -> bool {
    member.weight > 0 && !member.draining && (member.down || member.effective_weight == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;
    use crate::control::explain::offline_snapshot;
    use crate::control::finding::Severity;
    use crate::control::health::Board;
    use crate::control::health::target::{Failure, Step};
    use crate::dataplane::hash::HashKey;
    use crate::dataplane::service::ServiceTable;
    use crate::dataplane::time::Time;
    use std::net::IpAddr;
    use std::time::Duration;

    #[test]
    fn a_service_that_checks_have_left_without_anybody_is_named() {
        let text = "[director]\ninterface = \"eth0\"\n\
            [[service]]\nname = \"a\"\nvip = \"192.0.2.1\"\nport = 1\ncheck = { kind = \"tcp\" }\n\
            [[service.real]]\naddress = \"10.0.0.1\"\n\
            [[service.real]]\naddress = \"10.0.0.2\"\nweight = 0\n\
            [[service]]\nname = \"b\"\nvip = \"192.0.2.1\"\nport = 2\n\
            [[service.real]]\naddress = \"10.0.0.1\"\n\
            [[service]]\nname = \"c\"\nvip = \"192.0.2.2\"\nport = 2\n\
            [[service.real]]\naddress = \"10.0.0.1\"\nweight = 0\n";
        let config = parse(text, "t").unwrap();
        // Which of `a` and `b` have lost the one that has weight, and what follows.
        for (down, said) in [
            (vec![], vec![]),
            (vec!["a"], vec!["service a: no real server is up"]),
            (vec!["a", "b"], vec!["service a: no real server is up"]),
        ] {
            let mut table = offline_snapshot(&config, HashKey::DEFAULT).unwrap().services;
            table = with_down(table, &config, &down);
            let found = without_server(&config, &table, &Board::default());
            let found: Vec<&str> = found.iter().map(|finding| finding.message.as_str()).collect();
            assert_eq!(found, said, "{down:?}");
        }
    }

    #[test]
    fn a_service_that_was_not_checked_yet_is_named() {
        let text = "[director]\ninterface = \"eth0\"\n\
            [[service]]\nname = \"a\"\nvip = \"192.0.2.1\"\nport = 1\ncheck = { kind = \"tcp\" }\n\
            [[service.real]]\naddress = \"10.0.0.1\"\n\
            [[service]]\nname = \"b\"\nvip = \"192.0.2.1\"\nport = 2\ncheck = { kind = \"tcp\" }\n\
            [[service.real]]\naddress = \"10.0.0.1\"\nweight = 0\n";
        let config = parse(text, "t").unwrap();
        let table = offline_snapshot(&config, HashKey::DEFAULT).unwrap().services;
        let mut services = table.into_services();
        let mut board = Board::new(1);
        board.configure(&config, Time(0));
        let source: IpAddr = [10, 0, 0, 254].into();
        board.told(&(1..=2).map(|target| (target, source)).collect(), Time(0));
        let failed = |step| Err(Failure { step, what: "no".to_owned() });
        let error = Severity::Error;
        // What the checks find that begin then; one that could not begin decides nothing.
        for (at, outcome, said) in [
            (0, None, vec![(Severity::Warning, "service a: its first checks are still running")]),
            (1, Some(failed(Step::Local)), vec![(error, "service a: no real server is up")]),
            (9, Some(failed(Step::Timeout)), vec![(error, "service a: no real server is up")]),
            (90, Some(Ok(Duration::ZERO)), vec![(error, "service a: no real server is up")]),
            (99, Some(Ok(Duration::ZERO)), vec![]),
        ] {
            let now = Time(at * 1_000_000_000);
            if let Some(outcome) = outcome {
                for start in board.due(now, |_| true).0 {
                    board.finished(now, start.target, outcome.clone());
                }
            }
            for (service, configured) in services.iter_mut().zip(&config.services) {
                for member in &mut service.members {
                    *member = Member::up(member.address, member.weight);
                }
                board.judge(configured, &mut service.members);
            }
            let table = ServiceTable::new(services);
            let found = without_server(&config, &table, &board);
            let found: Vec<(Severity, &str)> =
                found.iter().map(|finding| (finding.severity, finding.message.as_str())).collect();
            assert_eq!(found, said, "{at}");
            services = table.into_services();
        }
    }

    /// The same services, in which the first real server of those named is down.
    fn with_down(table: ServiceTable, config: &Config, down: &[&str]) -> ServiceTable {
        let services = table.into_services();
        assert_eq!(services.len(), config.services.len());
        let spoil = |mut service: crate::dataplane::service::Service| {
            service.members[0].down = down.contains(&&*service.name);
            service
        };
        ServiceTable::new(services.into_iter().map(spoil).collect())
    }
}
