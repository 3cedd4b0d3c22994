//! Reading what e2fsprogs wrote.

use super::host::*;
use abi::{Errno, Timespec};
use vfs::{FileSystem, FileType};

fn tree(dir: &Dir) -> std::path::PathBuf {
    let src = dir.path("src");
    std::fs::create_dir_all(src.join("sub/deep")).unwrap();
    std::fs::write(src.join("hello"), b"hello world\n").unwrap();
    std::fs::write(src.join("sub/big"), pattern(1, 3_000_000)).unwrap();
    std::fs::write(src.join("empty"), b"").unwrap();
    std::os::unix::fs::symlink("hello", src.join("short")).unwrap();
    std::os::unix::fs::symlink("x".repeat(200), src.join("long")).unwrap();
    std::fs::hard_link(src.join("hello"), src.join("sub/again")).unwrap();
    std::fs::create_dir_all(src.join("many")).unwrap();
    for i in 0..1500 {
        std::fs::write(src.join(format!("many/file-{i:05}")), format!("{i}")).unwrap();
    }
    src
}

fn check_tree(mib: u64, args: &[&str]) {
    let dir = Dir::new();
    let src = tree(&dir);
    let mut all = vec!["-d", src.to_str().unwrap()];
    all.extend_from_slice(args);
    let image = mke2fs(&dir, mib, &all);
    let disk = disk(&image);
    let fs = mount(&disk);
    assert_eq!(read(&walk(&fs, "hello").unwrap()), b"hello world\n");
    assert_eq!(read(&walk(&fs, "sub/big").unwrap()), pattern(1, 3_000_000));
    assert_eq!(walk(&fs, "empty").unwrap().len(), 0);
    assert_eq!(walk(&fs, "short").unwrap().readlink().unwrap(), b"hello");
    assert_eq!(walk(&fs, "long").unwrap().readlink().unwrap(), "x".repeat(200).as_bytes());
    let again = walk(&fs, "sub/again").unwrap();
    assert_eq!(again.getattr().unwrap().nlink, 2);
    assert_eq!(walk(&fs, "nothing").unwrap_err(), Errno::ENOENT);
    assert_eq!(walk(&fs, "hello/x").unwrap_err(), Errno::ENOTDIR);
    let many = walk(&fs, "many").unwrap();
    let mut listed: Vec<String> = names(&many).into_iter().map(|n| n.0).collect();
    listed.sort();
    let want: Vec<String> = (0..1500).map(|i| format!("file-{i:05}")).collect();
    assert_eq!(listed, want);
    assert_eq!(read(&walk(&fs, "many/file-01234").unwrap()), b"1234");
    let root: Vec<_> = names(&fs.root().unwrap());
    assert!(root.contains(&("lost+found".into(), FileType::Dir)) && root.contains(&("long".into(), FileType::Symlink)));
    let st = fs.statfs().unwrap();
    assert!(st.bfree > 0 && st.bfree < st.blocks && st.ffree < st.files);
    drop((again, many));
    check(fs, &disk, &image);
}

#[test]
fn a_tree_made_by_mke2fs_1k_blocks() {
    check_tree(64, &["-b", "1024"]);
}

#[test]
fn a_tree_made_by_mke2fs_4k_blocks() {
    check_tree(64, &["-b", "4096"]);
}

#[test]
fn other_features() {
    check_tree(64, &["-b", "2048", "-O", "^metadata_csum,uninit_bg,^64bit"]);
    check_tree(64, &["-b", "1024", "-O", "metadata_csum_seed,orphan_file,sparse_super2,meta_bg,^resize_inode"]);
    check_tree(64, &["-b", "4096", "-O", "^has_journal,^dir_index,^flex_bg", "-I", "128"]);
}

#[test]
fn old_block_maps_are_read() {
    let dir = Dir::new();
    let src = tree(&dir);
    let image = mke2fs(&dir, 64, &["-b", "1024", "-O", "^extent,^64bit", "-d", src.to_str().unwrap()]);
    let fs = mount(&disk(&image));
    assert!(fs.read_only());
    assert_eq!(read(&walk(&fs, "sub/big").unwrap()), pattern(1, 3_000_000));
    assert_eq!(names(&walk(&fs, "many").unwrap()).len(), 1500);
}

#[test]
fn attributes_and_times() {
    let dir = Dir::new();
    let image = mke2fs(&dir, 16, &[]);
    std::fs::write(dir.path("f"), b"x").unwrap();
    let f = dir.path("f");
    debugfs_write(
        &image,
        &format!(
            "write {} f\nsif f mtime @13569465600\nsif f uid 70000\nea_set f user.one first\nea_set f security.two second\nmknod c c 5 1\nmknod b b 300 1000\nea_set f user.long {}\n",
            f.display(),
            "v".repeat(300)
        ),
    );
    let disk = disk(&image);
    let fs = mount(&disk);
    let f = walk(&fs, "f").unwrap();
    assert_eq!(f.getattr().unwrap().mtime, Timespec { sec: 13_569_465_600, nsec: 0 });
    assert_eq!(f.getattr().unwrap().uid, 70000);
    assert_eq!(f.get_xattr(b"user.one").unwrap(), b"first");
    assert_eq!(f.get_xattr(b"security.two").unwrap(), b"second");
    assert_eq!(f.get_xattr(b"user.long").unwrap(), vec![b'v'; 300]);
    assert_eq!(f.get_xattr(b"user.none").unwrap_err(), Errno::ENODATA);
    assert_eq!(walk(&fs, "c").unwrap().getattr().unwrap().rdev, 0x501);
    assert_eq!(walk(&fs, "b").unwrap().getattr().unwrap().rdev, (300 << 8) | 0xe8 | (0x300 << 12));
}

#[test]
fn what_is_no_ext4_is_refused_with_a_reason() {
    let dir = Dir::new();
    let refuse = |bytes: Vec<u8>| {
        let disk: std::sync::Arc<dyn block::BlockDevice> =
            std::sync::Arc::new(block::MemDisk::from_image("t", &bytes).unwrap());
        crate::DataFs::mount(disk, cache(), options(), 1).expect_err("mounted").why
    };
    assert!(refuse(vec![0; 1 << 20]).contains("magic"));
    assert!(refuse(vec![0; 512]).contains("small"));
    let image = mke2fs(&dir, 16, &["-O", "inline_data"]);
    assert!(refuse(std::fs::read(&image).unwrap()).contains("inline_data"));
    let image = mke2fs(&dir, 16, &["-O", "^metadata_csum"]);
    let good = std::fs::read(&image).unwrap();
    assert!(refuse(good[..8 << 20].to_vec()).contains("blocks"));
    let with = |at: usize, v: u32| {
        let mut b = good.clone();
        b[1024 + at..1024 + at + 4].copy_from_slice(&v.to_le_bytes());
        refuse(b)
    };
    assert!(with(0x18, 40).contains("larger than a page"));
    assert!(with(0x20, 0).contains("blocks in a group"));
    assert!(with(0x28, 1 << 30).contains("inodes in a group"));
    assert!(with(0x0, 12).contains("inodes"));
    assert!(with(0x14, 77).contains("first block"));
    assert!(with(0x60, 0x8000_0000).contains("0x80000000"));
}
