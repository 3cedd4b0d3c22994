//! Consecutive pages on their way to or from the medium.

use crate::PAGE;
use crate::page::CachePage;
use abi::{Errno, Result};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use platform::Page;

/// The most pages in one run: 1 MiB.
pub const MAX_RUN: usize = 256;

macro_rules! run_type {
    ($Run:ident, $end:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug)]
        #[must_use]
        pub struct $Run {
            pages: Vec<Arc<CachePage>>,
            size: u64,
            finished: AtomicBool,
        }

        impl $Run {
            pub(crate) fn new(pages: Vec<Arc<CachePage>>, size: u64) -> Self {
                $Run { pages, size, finished: AtomicBool::new(false) }
            }

            /// The number of the first page.
            pub fn first(&self) -> u64 {
                self.pages.first().map_or(0, |p| p.index())
            }

            /// How many pages.
            pub fn len(&self) -> usize {
                self.pages.len()
            }

            /// Whether there is none.
            pub fn is_empty(&self) -> bool {
                self.pages.is_empty()
            }

            /// Where the run starts in the file, in bytes.
            pub fn offset(&self) -> u64 {
                self.first() * PAGE
            }

            /// The file's size when the run was made.
            pub fn file_size(&self) -> u64 {
                self.size
            }

            /// The frames, in order.
            pub fn pages(&self) -> impl ExactSizeIterator<Item = &Page> + '_ {
                self.pages.iter().map(|p| p.page())
            }

            /// The frame of the run's page `n`, counted from its first.
            pub fn page(&self, n: usize) -> Option<&Page> {
                self.pages.get(n).map(|p| p.page())
            }

            /// Cuts the run: `self` keeps the first `n` pages, the rest is returned. Each part is finished by itself.
            pub fn split_off(&mut self, n: usize) -> Self {
                let n = n.min(self.pages.len());
                $Run { pages: self.pages.split_off(n), size: self.size, finished: AtomicBool::new(false) }
            }

            /// The I/O ended. Calls after the first do nothing. Context: any.
            pub fn finish(&self, result: Result<()>) {
                if !self.finished.swap(true, Ordering::AcqRel) {
                    for p in &self.pages {
                        p.$end(result);
                    }
                }
            }

            /// Whether it has ended.
            pub fn is_finished(&self) -> bool {
                self.finished.load(Ordering::Acquire)
            }
        }

        impl Drop for $Run {
            fn drop(&mut self) {
                self.finish(Err(Errno::EIO));
            }
        }
    };
}

run_type!(ReadRun, end_read, "Pages to be filled by [`crate::Backing::read_pages`].");
run_type!(WriteRun, end_write, "Pages to be written by [`crate::Backing::write_pages`].");

impl WriteRun {
    /// How many bytes of the run lie within the file (the rest of the last page is zero).
    pub fn byte_len(&self) -> u64 {
        (self.len() as u64 * PAGE).min(self.size.saturating_sub(self.offset()))
    }

    /// Gives the pages back as dirty: they cannot be written now (no memory for a request, say) and are tried again later.
    pub fn redirty(self) {
        for p in &self.pages {
            if let Some(file) = p.owner.file.upgrade() {
                file.mark_dirty(p);
            }
        }
        self.finish(Ok(()));
    }
}
