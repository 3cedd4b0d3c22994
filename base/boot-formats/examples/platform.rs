//! Prints what the kernel would read from a device tree file: `cargo run --example platform -- virt.dtb`.
use boot_formats::{fdt::Fdt, platform::Platform};

fn main() {
    for path in std::env::args().skip(1) {
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                eprintln!("{path}: {error}");
                std::process::exit(1);
            }
        };
        match Fdt::new(&bytes) {
            Err(error) => println!("{path}: {error}"),
            Ok(fdt) => {
                let mut platform = Platform::new();
                let result = platform.read_fdt(&fdt);
                println!("{path}: {fdt:?} {result:?}\n{platform:#?}");
            }
        }
    }
}
