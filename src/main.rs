//! The program: parse, run, exit code. Everything it does is in [`quorate::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    quorate::cli::main()
}
