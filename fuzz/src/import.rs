//! The import from ipvsadm and keepalived: any bytes are imported, with nothing lost, or refused
//! with a place that can be shown.

use adit::control::config::{RenderStyle, parse};
use adit::control::import::{ImportError, Imported, Options, Source, import as import_from};

/// Imports the bytes behind the first, which chooses what they are and how they are imported.
pub fn import(data: &[u8]) {
    let Some((choice, input)) = data.split_first() else { return };
    let source = if choice & 1 == 0 { Source::Ipvsadm } else { Source::Keepalived };
    let options = Options {
        interface: (choice & 2 == 0).then(|| "eth0".to_owned()),
        config_id: (choice & 4 != 0).then(|| "one".to_owned()),
        report_in_comments: choice & 8 != 0,
    };
    match import_from(source, input, "input.conf", &options) {
        Ok(imported) => taken(&imported, source, input, &options),
        Err(ImportError::Syntax(errors)) => {
            let lines = input.split(|byte| *byte == b'\n').count();
            for problem in errors.problems() {
                assert!(!problem.message.is_empty() && !problem.help.is_empty());
                assert!((1..=lines).contains(&problem.line), "{problem:?}");
            }
            assert!(!errors.render(RenderStyle::Plain).is_empty());
        }
        Err(error @ (ImportError::ReportTooLong(_) | ImportError::Mistake(_))) => {
            panic!("{error}");
        }
    }
}

fn taken(imported: &Imported, source: Source, input: &[u8], options: &Options) {
    let again = import_from(source, input, "input.conf", options).expect("it was taken once");
    assert_eq!(*imported, again, "the same input, the same output");
    let Imported { config, report } = imported;
    assert_eq!(report.words.read, report.words.used + report.words.reported, "a word is lost");
    let lines = input.split(|byte| *byte == b'\n').count();
    for entry in &report.entries {
        assert!(!entry.why.is_empty() && !entry.instead.is_empty(), "{entry:?}");
        assert!(!entry.words.contains(|c: char| c.is_control()), "{entry:?}");
        let (first, last) = (entry.line.unwrap_or(1), entry.last_line.unwrap_or(1));
        assert!((1..=lines).contains(&first) && last <= lines, "{entry:?}");
    }
    // Without an interface one line is to be filled in first.
    match parse(config, "adit.toml") {
        Ok(parsed) => {
            assert_eq!(parsed.services.len(), report.services);
            let reals: usize = parsed.services.iter().map(|service| service.reals.len()).sum();
            assert_eq!(reals, report.real_servers);
        }
        Err(errors) => {
            assert!(options.interface.is_none(), "{errors}");
            assert_eq!(errors.problems().len(), 1, "{errors}");
        }
    }
}
