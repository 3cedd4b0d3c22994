//! `/sbin/init`. Without arguments it is process 1; `init --resume` continues as process 1 after a crash; `init --exec` is
//! the middle step of starting a service.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--exec") => init::spawn::second_stage(&args[1..]),
        _ if std::process::id() != 1 => {
            eprintln!("init: this is process {}, not 1: see svc(1) to ask the one that is", std::process::id());
            ExitCode::from(2)
        }
        Some("--resume") => init::pid1::run(true),
        _ => init::pid1::run(false),
    }
}
