//! The configuration reader: any text is either a configuration that keeps its own rules, or
//! refused with problems that can be shown.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use adit::control::config::{
    Config, ConfigErrors, Ports, RenderStyle, Service, config_hash, parse, services_hash,
};

/// Reads the bytes as a configuration file.
pub fn config_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let result = parse(text, "adit.toml");
    assert_eq!(result, parse(text, "adit.toml"), "the same text, the same answer");
    match result {
        Ok(config) => taken(&config),
        Err(errors) => refused(&errors, text),
    }
}

fn taken(config: &Config) {
    assert_eq!(config_hash(config), config_hash(&config.clone()));
    assert_eq!(services_hash(&config.services), services_hash(&config.services));
    for warning in config.warnings() {
        assert!(!warning.message.is_empty() && !warning.help.is_empty());
    }
    assert_ne!(config.director.tap, config.director.interface);
    assert_ne!(config.tunnel.ttl, 0);

    let names: BTreeSet<_> = config.services.iter().map(|service| &service.name).collect();
    assert_eq!(names.len(), config.services.len(), "two services of one name");
    let vips = config.vips();
    for service in &config.services {
        assert!(vips.contains(&service.vip));
        let addresses: Vec<_> = service.reals.iter().map(|real| real.address).collect();
        assert!(addresses.is_sorted_by(|a, b| a < b), "real servers in order, each once");
        let is_vip = |address: &IpAddr| vips.iter().any(|vip| vip.contains(*address));
        assert!(!addresses.iter().any(is_vip), "a VIP as real server");
        let port = match &service.ports {
            Ports::Exact(port) | Ports::Range(port, _) => *port,
            Ports::List(ports) => ports[0],
            Ports::Any => 0,
        };
        assert!(service.ports.contains(port));
        let found = config
            .service_for(service.vip.address(), port, service.protocol)
            .expect("a service has its own ports");
        let rank = |s: &Service| (Reverse(s.vip.length()), s.ports.precedence());
        assert!(rank(found) <= rank(service));
        if rank(found) == rank(service) {
            assert_eq!(found.name, service.name, "two services of one kind share a port");
        }
    }
}

fn refused(errors: &ConfigErrors, text: &str) {
    assert!(!errors.problems().is_empty());
    let lines = text.lines().count() + 1;
    let shown = errors.to_string();
    for problem in errors.problems() {
        assert!(!problem.message.is_empty() && !problem.help.is_empty(), "{problem:?}");
        assert!((1..=lines).contains(&problem.line), "{problem:?}");
        assert!(problem.column >= 1, "{problem:?}");
        assert!(problem.span.start <= problem.span.end, "{problem:?}");
        assert!(problem.span.end <= text.len().max(problem.span.start), "{problem:?}");
        assert!(shown.contains(&problem.message));
    }
    // Drawing costs ten times as much as reading: one style for each text.
    let style =
        if text.len().is_multiple_of(2) { RenderStyle::Plain } else { RenderStyle::Coloured };
    assert!(!errors.render(style).is_empty());
}
