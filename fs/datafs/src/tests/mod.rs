//! Tests on images that e2fsprogs made, judged by `e2fsck -fn`, read back by debugfs.

mod crash;
mod crash_threads;
mod flags;
mod fuzz;
mod host;
mod read;
mod speed;
mod write;
