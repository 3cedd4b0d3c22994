//! Devices for tests on the host: one that remembers, one that fails, one that is a file, and
//! one that shares an image with others.
//!
//! [`RecordingDisk`] keeps every write and flush in order; its [`Recording`] then builds what a power cut at any moment
//! could have left on the medium. [`FaultyDisk`] fails on demand, holds requests back, and vanishes. [`FileDisk`] lets
//! the host's tools (mke2fs, e2fsck) make and judge what our code reads and wrote.

mod faulty;
mod file;
mod overlay;
mod recording;

pub use faulty::{Fault, FaultyDisk, What};
pub use file::FileDisk;
pub use overlay::OverlayDisk;
pub use recording::{Cursor, Event, Recording, RecordingDisk};
