//! Inputs that are not what they should be: refused with their place, and never a panic.

use adit::control::config::{ConfigErrors, RenderStyle};
use adit::control::import::{ImportError, Options, Source, import};

fn refused(source: Source, input: &[u8]) -> ConfigErrors {
    match import(source, input, "file.conf", &Options::default()) {
        Err(ImportError::Syntax(errors)) => *errors,
        Err(other) => panic!("{other}"),
        Ok(imported) => panic!("imported:\n{}", imported.config),
    }
}

#[test]
fn mistakes_are_shown_in_their_lines() {
    let cases: [(&str, Source, &[u8]); 12] = [
        ("not_a_rule", Source::Ipvsadm, b"# rules\n-A -t 192.0.2.1:80\n  <html>\n"),
        ("no_value", Source::Ipvsadm, b"-A -t 192.0.2.1:80 -s\n"),
        ("set_of_two", Source::Ipvsadm, b"--set 900 120\n"),
        ("not_closed", Source::Keepalived, b"virtual_server 192.0.2.1 80 {\n  protocol TCP\n"),
        ("closes_nothing", Source::Keepalived, b"virtual_server 192.0.2.1 80 {\n}\n  }\n"),
        ("nameless_block", Source::Keepalived, b"\n{ }\n"),
        ("open_quote", Source::Keepalived, b"global_defs {\n  router_id \"one\n}\n"),
        ("comment_in_quotes", Source::Keepalived, b"a {\n  path \"/x#y\"\n}\n"),
        ("definition_of_itself", Source::Keepalived, b"$A=x $A\n\n$A\n"),
        ("not_utf8", Source::Keepalived, b"global_defs {\n  router_id \xe4\n}\n"),
        ("nul", Source::Ipvsadm, b"-A -t 192.0.2.1:80\n\0\n"),
        ("in_a_definition", Source::Keepalived, b"$A= \\\n a { \\\n }\n\n  $A }\n"),
    ];
    for (name, source, input) in cases {
        let errors = refused(source, input);
        insta::assert_snapshot!(name, format!("{errors}\n\n{}", errors.render(RenderStyle::Plain)));
    }
}

#[test]
fn long_and_deep_inputs_are_refused_or_read_but_never_panic() {
    let deep = "a {\n".repeat(1 << 20);
    assert!(refused(Source::Keepalived, deep.as_bytes()).to_string().contains("file.conf:17:3"));
    let long = vec![b'#'; adit::control::import::MAX_INPUT_BYTES + 1];
    for source in [Source::Ipvsadm, Source::Keepalived] {
        assert!(refused(source, &long).to_string().contains("bytes"));
        // Ten megabytes of a comment say nothing.
        assert!(import(source, &long[..10 << 20], "f", &Options::default()).is_ok());
    }
    let words = "a ".repeat(1_000_001);
    assert!(refused(Source::Keepalived, words.as_bytes()).to_string().contains("1000000 words"));
    let rules = "-A -t 192.0.2.1:80\n".repeat(400_000);
    assert!(refused(Source::Ipvsadm, rules.as_bytes()).to_string().contains("1000000 words"));
    let conditions = "@a ".repeat(300_000);
    let options = Options { config_id: Some("a".to_owned()), ..Options::default() };
    let import = |text: &str| import(Source::Keepalived, text.as_bytes(), "f", &options);
    assert!(import(&conditions).unwrap_err().to_string().contains("too much"));
    let bomb: String = (0..40).map(|n| format!("$A{n}=${{A{}}}${{A{}}}\n", n + 1, n + 1)).collect();
    assert!(import(&format!("{bomb}$A41=x\n$A0\n")).unwrap_err().to_string().contains("too much"));
}

#[test]
fn what_multiplies_is_bounded() {
    let options = Options { interface: Some("eth0".to_owned()), ..Options::default() };
    let of = |text: &str| import(Source::Keepalived, text.as_bytes(), "f", &options).unwrap();
    let server = |head: &str, reals: usize| {
        let reals: String =
            (0..reals).map(|n| format!("real_server 10.0.{}.{}\n", n / 250, n % 250 + 1)).collect();
        format!("virtual_server {head} {{\nprotocol TCP\nlvs_method TUN\n{reals}}}\n")
    };
    // More VIPs than a director has.
    let many =
        of(&format!("virtual_server_group g {{\n198.18.0.0/22\n}}\n{}", server("group g", 1)));
    assert_eq!(many.report.services, config_limits().0);
    assert!(many.report.text().contains("at most 512 VIPs"));
    // More services than fit in memory.
    let huge = of(&format!("virtual_server_group g {{\n10.0.0.0/8\n}}\n{}", server("group g", 1)));
    assert_eq!(huge.report.services, 0);
    // More entries of real servers than are worth writing.
    let wide =
        of(&format!("virtual_server_group g {{\n198.18.0.1-255\n}}\n{}", server("group g", 300)));
    assert!(wide.report.text().contains("entries of real servers"), "{}", wide.report.text());
    // More different real servers than the region knows.
    let reals = of(&server("192.0.2.1", 2100));
    assert_eq!(reals.report.real_servers, config_limits().1);
    assert!(reals.report.text().contains("different real servers"));
}

fn config_limits() -> (usize, usize) {
    (adit::control::config::MAX_VIPS, adit::control::config::MAX_REALS)
}
