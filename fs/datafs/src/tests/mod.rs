//! Tests on images that e2fsprogs made, judged by `e2fsck -fn`, read back by debugfs.

mod bad;
mod crash;
mod crash_threads;
mod flags;
mod fuzz;
mod host;
mod read;
mod remount;
mod shift;
mod speed;
mod write;
