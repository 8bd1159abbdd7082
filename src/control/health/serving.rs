//! Whether services and VIPs can serve, by weights and checks.

use crate::control::config::Config;
use crate::control::finding::Finding;
use crate::dataplane::service::ServiceTable;
use std::net::IpAddr;

/// Whether some service of the VIP has a real server that takes new flows: what an announcement of
/// the VIP may hang on.
#[must_use]
pub fn can_serve(services: &ServiceTable, vip: IpAddr) -> bool {
    let of_vip = services.services().iter().filter(|service| service.address == vip);
    of_vip.flat_map(|service| &service.members).any(|member| member.is_eligible())
}

/// Services that checks have left without a real server.
pub fn without_server(config: &Config, services: &ServiceTable) -> Vec<Finding> {
    let checked = |name: &str| {
        config.services.iter().any(|service| service.name == name && service.check.is_some())
    };
    services
        .services()
        .iter()
        .filter(|service| service.members.iter().all(|member| !member.is_eligible()))
        .filter(|service| service.members.iter().any(|member| member.down))
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
    use crate::dataplane::hash::HashKey;
    use crate::dataplane::service::ServiceTable;

    #[test]
    fn a_vip_serves_while_one_of_its_services_has_somebody() {
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
        for (down, vip_serves, said) in [
            (vec![], true, vec![]),
            (vec!["a"], true, vec!["service a: no real server is up"]),
            (vec!["a", "b"], false, vec!["service a: no real server is up"]),
        ] {
            let mut table = offline_snapshot(&config, HashKey::DEFAULT).unwrap().services;
            table = with_down(table, &config, &down);
            assert_eq!(can_serve(&table, [192, 0, 2, 1].into()), vip_serves, "{down:?}");
            assert!(!can_serve(&table, [192, 0, 2, 2].into()), "nobody has weight there");
            assert!(!can_serve(&table, [192, 0, 2, 3].into()), "no VIP");
            let found = without_server(&config, &table);
            let found: Vec<&str> = found.iter().map(|finding| finding.message.as_str()).collect();
            assert_eq!(found, said, "{down:?}");
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
