//! Not a test but something to profile: `cargo test --release -p datafs -- --ignored speed`.

use super::host::*;
use vfs::{FileSystem, NewKind};

#[test]
#[ignore = "a measurement"]
fn speed_of_creating_files() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 256, &["-N", "120000"]);
    let disk = disk(&image);
    let fs = mount(&disk);
    let d = mkdir(&fs.root().unwrap(), "d");
    for round in 0..4 {
        let began = std::time::Instant::now();
        for i in 0..10_000 {
            let f = d.create(format!("{round}file{i}").as_bytes(), &new(NewKind::Regular)).unwrap();
            drop(f);
        }
        println!("10 000 files: {:?}", began.elapsed());
    }
    let began = std::time::Instant::now();
    for i in 0..10_000 {
        d.unlink(format!("0file{i}").as_bytes()).unwrap();
    }
    println!("10 000 deleted: {:?}", began.elapsed());
    drop(d);
    unmount(fs);
}
