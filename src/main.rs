//! `adit`: arguments, command, exit code.

use adit::cli::{Arguments, Outcome};
use clap::Parser;
use std::process::ExitCode;

/// Wrong usage, as clap itself exits.
const EXIT_USAGE: u8 = 2;
/// The request was understood and refused; the reason was printed.
const EXIT_REFUSED: u8 = 1;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version arrive here too and are no errors.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // A closed pipe (`adit --help | head`) is nobody's fault.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(arguments) {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Refused) => ExitCode::from(EXIT_REFUSED),
        Err(error) => {
            // Each error of ours says its cause itself.
            adit::cli::output::error(&error.to_string());
            ExitCode::from(EXIT_REFUSED)
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<Outcome> {
    Ok(adit::cli::run(arguments)?)
}
