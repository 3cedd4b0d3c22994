//! The web server of a Berth machine.

fn main() {
    println!("httpd {}", env!("CARGO_PKG_VERSION"));
}
