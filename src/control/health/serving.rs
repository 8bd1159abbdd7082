//! Whether services can serve, by weights and checks.

use crate::control::config::Config;
use crate::control::finding::Finding;
use crate::dataplane::service::ServiceTable;

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
