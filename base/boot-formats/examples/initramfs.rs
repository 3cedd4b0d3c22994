//! Lists what the kernel would unpack from an initial root: `cargo run --example initramfs -- initrd.img`.
use boot_formats::cpio::{Header, Sink};
use boot_formats::{gzip::Workspace, initramfs};
use std::convert::Infallible;

struct List;

impl Sink for List {
    type Error = Infallible;
    fn begin_entry(&mut self, h: &Header, name: &[u8]) -> Result<(), Infallible> {
        println!("{:06o} {:2} {}:{} {:8} {}", h.mode, h.nlink, h.uid, h.gid, h.size, String::from_utf8_lossy(name));
        Ok(())
    }
    fn data(&mut self, _: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }
    fn end_entry(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

fn main() {
    for path in std::env::args().skip(1) {
        let Some(mut workspace) = Workspace::new() else { return };
        match std::fs::read(&path) {
            Err(error) => eprintln!("{path}: {error}"),
            Ok(image) => match initramfs::unpack(&image, &mut workspace, u64::MAX, &mut List) {
                Ok(archives) => println!("{path}: {archives} archives"),
                Err(error) => println!("{path}: {error}"),
            },
        }
    }
}
