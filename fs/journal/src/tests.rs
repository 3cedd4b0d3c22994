//! Tests of the whole: against mke2fs, debugfs and e2fsck where they are installed (they are on the development
//! machines; a test that misses them says so).

mod abort;
mod basic;
mod crash;
mod damage;
mod foreign;
use crate::testing as support;
mod threads;
