//! Tests on images that e2fsprogs made, judged by `e2fsck -fn`, read back by debugfs.

mod crash;
mod host;
mod read;
mod write;
