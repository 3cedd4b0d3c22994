//! Where things are: what was built, and a directory of its own for every run.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Failure, Outcome};

/// The build directory and what the command line put in place of its parts.
#[derive(Debug, Clone)]
pub struct Paths {
    /// `BERTH_BUILD`, or `build` below the current directory.
    pub build: PathBuf,
    /// The kernel to test.
    pub kernel: PathBuf,
    /// The common initial root.
    pub initrd: PathBuf,
    /// This process's own directory below `build/run`.
    pub run: PathBuf,
}

/// Directories of dead runs are kept this long, for a look at a failure.
const KEEP: Duration = Duration::from_secs(6 * 3600);

impl Paths {
    /// Find everything and make the run's directory.
    pub fn new(kernel: Option<PathBuf>, initrd: Option<PathBuf>) -> Outcome<Self> {
        let build = std::env::var_os("BERTH_BUILD").map_or_else(|| PathBuf::from("build"), PathBuf::from);
        let build = std::path::absolute(build)?;
        let runs = build.join("run");
        forget_old(&runs);
        let run = runs.join(std::process::id().to_string());
        std::fs::create_dir_all(&run)?;
        let kernel = kernel.unwrap_or_else(|| build.join("kernel.img"));
        let initrd = initrd.unwrap_or_else(|| build.join("initrd.cpio.gz"));
        Ok(Self { kernel: std::path::absolute(kernel)?, initrd: std::path::absolute(initrd)?, build, run })
    }

    /// The kernel with every run-time check, if the kernel under test is the built one and that exists beside it.
    pub fn checked_kernel(&self) -> Option<PathBuf> {
        let checked = self.build.join("kernel-checked.img");
        (self.kernel == self.build.join("kernel.img") && checked.exists()).then_some(checked)
    }

    /// The initial root with sqlite and e2fsprogs.
    pub fn data_initrd(&self) -> Outcome<PathBuf> {
        let file = self.build.join("initrd-data.cpio.gz");
        Self::need(&file, "initrd")?;
        Ok(file)
    }

    /// The initial root of a machine that hosts applications, uncompressed as `make run` has it.
    pub fn host_initrd(&self) -> Outcome<PathBuf> {
        let file = self.build.join("initrd-host.cpio");
        Self::need(&file, "initrd")?;
        Ok(file)
    }

    /// The initial root as `build/initrd.cpio`: both kernels boot faster when there is nothing to decompress.
    pub fn with_plain_initrd(mut self) -> Self {
        self.initrd = self.build.join("initrd.cpio");
        self
    }

    /// Linux to compare with.
    pub fn linux(&self) -> PathBuf {
        self.build.join("linux/vmlinuz")
    }

    /// The initial root for Linux: the common one with its drivers' modules behind it, if there are such.
    pub fn linux_initrd(&self) -> Outcome<PathBuf> {
        let Ok(modules) = std::fs::read(self.build.join("linux/modules.cpio.gz")) else {
            return Ok(self.initrd.clone());
        };
        Self::need(&self.initrd, "initrd")?;
        let mut both = std::fs::read(&self.initrd)?;
        both.extend(modules);
        let file = self.build.join("initrd-linux.cpio.gz");
        // Written beside and renamed: a machine may be booting from it.
        let new = self.run.join("initrd-linux.cpio.gz");
        std::fs::write(&new, both)?;
        std::fs::rename(&new, &file)?;
        Ok(file)
    }

    /// A fresh directory for the case `name` of this run.
    pub fn case_dir(&self, name: &str) -> Outcome<PathBuf> {
        let safe: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let dir = self.run.join(safe);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// The file must be there.
    pub fn need(file: &Path, make: &str) -> Outcome {
        if file.exists() {
            return Ok(());
        }
        Err(Failure::new("harness.missing", format!("{} is not there; `make {make}` makes it", file.display())))
    }

    /// Remove the run's directory if nothing was kept in it.
    pub fn tidy(&self) {
        // Fails exactly when a failed case left something to look at.
        let _ = std::fs::remove_dir(&self.run);
    }
}

fn forget_old(runs: &Path) {
    let Ok(entries) = std::fs::read_dir(runs) else { return };
    for e in entries.flatten() {
        let alive = Path::new("/proc/self").exists() && Path::new("/proc").join(e.file_name()).exists();
        let old = e
            .metadata()
            .and_then(|m| m.modified())
            .is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age > KEEP));
        if old && !alive {
            // Another run may be removing it too.
            let _ = std::fs::remove_dir_all(e.path());
        }
    }
}
