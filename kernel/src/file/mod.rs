//! Files as processes see them: descriptors, and the objects behind them.

pub mod devfs;
pub mod procfs;
pub mod root;
pub mod synth;
pub mod table;
pub mod user;

pub use root::init_root;
pub use table::FileTable;
pub use vfs::FsContext;

use abi::{Errno, Result};
use alloc::sync::Arc;
use vfs::{File, Path};

/// Opens the named pipe at `path`.
pub fn open_fifo(_path: &Path, _flags: u32) -> Result<Arc<dyn File>> {
    Err(Errno::ENXIO)
}
