//! Ranges taken out of files and put in, against a model.

use super::host::*;
use abi::{Errno, linux};
use vfs::FileSystem;

const COLLAPSE: u32 = linux::FALLOC_FL_COLLAPSE_RANGE;
const INSERT: u32 = linux::FALLOC_FL_INSERT_RANGE;

#[test]
fn ranges_are_collapsed_and_inserted() {
    for args in [&["-b", "1024"][..], &["-b", "4096"]] {
        let block = args[1].parse::<usize>().unwrap();
        let dir = Dir::new();
        let image = mke2fs(&dir, 32, args);
        let disk = disk(&image);
        let fs = mount(&disk);
        let f = file(&fs.root().unwrap(), "f");
        // Many runs, so that the tree has leaves: every second block, then some in one piece, space behind the end.
        let mut model = vec![0u8; 900 * block];
        for i in (0..700).step_by(2) {
            let data = pattern(i as u64, block);
            write(&f, (i * block) as u64, &data);
            model[i * block..(i + 1) * block].copy_from_slice(&data);
            if i % 100 == 0 {
                f.fsync(false).unwrap();
            }
        }
        let data = pattern(7, 200 * block - 100);
        write(&f, (700 * block) as u64, &data);
        model[700 * block..900 * block - 100].copy_from_slice(&data);
        model.truncate(900 * block - 100);
        f.fallocate(linux::FALLOC_FL_KEEP_SIZE, (900 * block) as u64, (10 * block) as u64).unwrap();
        let noise = pattern(3, 400);
        for (n, r) in noise.chunks_exact(4).enumerate() {
            let blocks = model.len() / block;
            let at = (usize::from(r[0]) << 8 | usize::from(r[1])) % blocks;
            let len = 1 + usize::from(r[2]) % 60;
            let (offset, bytes) = (at * block, len * block);
            if r[3] & 1 == 0 {
                let done = f.fallocate(COLLAPSE, offset as u64, bytes as u64);
                if offset + bytes >= model.len() {
                    assert_eq!(done, Err(Errno::EINVAL));
                } else {
                    done.unwrap();
                    model.drain(offset..offset + bytes);
                }
            } else if model.len() < 3000 * block {
                f.fallocate(INSERT, offset as u64, bytes as u64).unwrap();
                model.splice(offset..offset, std::iter::repeat_n(0, bytes));
            }
            if n % 10 == 0 {
                let data = pattern(n as u64, 3000);
                let to = (offset + 77).min(model.len() - 3000);
                write(&f, to as u64, &data);
                model[to..to + 3000].copy_from_slice(&data);
            }
            if n % 20 == 0 {
                assert!(read(&f) == model, "{args:?} after {n}");
            }
        }
        assert!(read(&f) == model);
        drop(f);
        assert!(!fs.saw_errors());
        unmount(fs);
        let fs = mount(&disk);
        assert!(read(&walk(&fs, "f").unwrap()) == model);
        check(fs, &disk, &image);
    }
}

#[test]
fn what_is_no_range_is_refused() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &["-b", "4096"]);
    let disk = disk(&image);
    let fs = mount(&disk);
    let f = file(&fs.root().unwrap(), "f");
    write(&f, 0, &pattern(1, 20_000));
    for (mode, offset, len, errno) in [
        (COLLAPSE, 100, 4096, Errno::EINVAL),
        (COLLAPSE, 4096, 100, Errno::EINVAL),
        (COLLAPSE, 4096, 16384, Errno::EINVAL),
        (COLLAPSE | linux::FALLOC_FL_KEEP_SIZE, 4096, 4096, Errno::EINVAL),
        (COLLAPSE | INSERT, 4096, 4096, Errno::EINVAL),
        (INSERT, 20480, 4096, Errno::EINVAL),
        (INSERT, 4096, 100, Errno::EINVAL),
        (INSERT, 4096, 1 << 44, Errno::EFBIG),
    ] {
        assert_eq!(f.fallocate(mode, offset, len), Err(errno), "{mode:x} {offset} {len}");
    }
    assert_eq!(read(&f), pattern(1, 20_000));
    drop(f);
    check(fs, &disk, &image);
}
