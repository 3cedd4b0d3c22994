//! Writes the malformed programs into a directory, executable, and a file `verdicts` with a line `name verdict` for
//! each: `0` (must run and exit with 0), an errno's name (execve must fail so), or `any` (it may fail, or the process
//! may die; nothing else may suffer).
//!
//! `cargo run -p elf-image --features corpus --example malformed -- DIRECTORY`

use elf_image::corpus::cases;
use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    let Some(directory) = std::env::args().nth(1) else {
        eprintln!("usage: malformed DIRECTORY");
        std::process::exit(2);
    };
    let directory = Path::new(&directory);
    fs::create_dir_all(directory)?;
    let mut verdicts = String::new();
    for case in cases() {
        let path = directory.join(case.name);
        fs::write(&path, &case.bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let _ = writeln!(verdicts, "{} {}", case.name, case.verdict.label());
    }
    fs::write(directory.join("verdicts"), verdicts)
}
