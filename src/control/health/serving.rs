//! Whether services can serve, by weights and checks.

use crate::control::config::Config;
use crate::control::finding::Finding;
use crate::dataplane::scheduler::Member;
use crate::dataplane::service::ServiceTable;

/// Services that checks have left without a real server, or not given one yet.
pub fn without_server(config: &Config, services: &ServiceTable) -> Vec<Finding> {
    let checked = |name: &str| {
        config.services.iter().any(|service| service.name == name && service.check.is_some())
    };
    // Down, or not checked yet; of those that would take new flows otherwise.
    let waits = |member: &Member| {
        member.weight > 0 && !member.draining && (member.down || member.effective_weight == 0)
    };
    services
        .services()
        .iter()
        .filter(|service| service.members.iter().all(|member| !member.is_eligible()))
        .filter(|service| service.members.iter().any(waits))
        .filter(|service| checked(&service.name))
        .map(|service| {
            Finding::error(
                format!("service {}: no real server is up", service.name),
                "new connections are dropped as no_real_server until a check succeeds; those there are \
                 go on:\nadit list --health",
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::parse;
    use crate::control::explain::offline_snapshot;
    use crate::control::health::Board;
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
            let found = without_server(&config, &table);
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
        for (at, said) in [(0, vec!["service a: no real server is up"]), (1, vec![])] {
            if at == 1 {
                for start in board.due(Time(1_000_000_000), |_| true).0 {
                    board.finished(Time(1_000_000_000), start.target, Ok(Duration::ZERO));
                }
            }
            for (service, configured) in services.iter_mut().zip(&config.services) {
                for member in &mut service.members {
                    *member = Member::up(member.address, member.weight);
                }
                board.judge(configured, &mut service.members);
            }
            let table = ServiceTable::new(services);
            let found = without_server(&config, &table);
            let found: Vec<&str> = found.iter().map(|finding| finding.message.as_str()).collect();
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
