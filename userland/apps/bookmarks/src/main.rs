//! The bookmark keeper of a Berth machine.

fn main() {
    println!("bookmarks {}", env!("CARGO_PKG_VERSION"));
}
