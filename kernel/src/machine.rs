//! The machine as found at boot, immutable ever after: the platform description and the command line.

use alloc::vec::Vec;
use boot_formats::cmdline::Cmdline;
use boot_formats::platform::Platform;
use sync::Once;

static PLATFORM: Once<Platform> = Once::new();
static COMMAND_LINE: Once<Vec<u8>> = Once::new();

/// Sets the platform; once.
pub fn set_platform(p: Platform) -> &'static Platform {
    let Ok(p) = PLATFORM.set(p) else { panic!("the platform was set twice") };
    p
}

/// The platform.
pub fn platform() -> &'static Platform {
    match PLATFORM.get() {
        Some(p) => p,
        None => panic!("the platform is not known yet"),
    }
}

/// Sets the command line; once, when there is a heap.
pub fn set_command_line(line: &[u8]) {
    let _ = COMMAND_LINE.set(line.to_vec());
}

/// The kernel's command line.
pub fn command_line() -> &'static [u8] {
    COMMAND_LINE.get().map_or(&[], |v| v)
}

/// The kernel's command line, to be asked (quotes, `--`, later words win: see [`Cmdline`]).
pub fn cmdline() -> Cmdline<'static> {
    Cmdline::new(command_line())
}

/// The value of the last `key=value` on the command line before `--`, or an empty value for a bare `key`.
pub fn option(key: &str) -> Option<&'static [u8]> {
    cmdline().get(key).map(|param| param.value.unwrap_or(b""))
}

/// As [`option`], as a number.
pub fn option_number(key: &str) -> Option<i64> {
    core::str::from_utf8(option(key)?).ok()?.parse().ok()
}

/// Whether `berth.sabotage=` names `what`: a mechanism that a gate breaks on purpose.
pub fn sabotaged(what: &str) -> bool {
    cmdline().lists("berth.sabotage", what)
}

/// A mechanism that `berth.sabotage=` can break, where the question is asked often: it is answered from the command line
/// once.
pub struct Sabotage(&'static str, Once<bool>);

impl Sabotage {
    /// The one that the command line calls `what`.
    pub const fn new(what: &'static str) -> Self {
        Sabotage(what, Once::new())
    }

    /// Whether it is broken.
    #[inline]
    pub fn on(&self) -> bool {
        match self.1.get() {
            Some(&on) => on,
            None => {
                let on = sabotaged(self.0);
                let _ = self.1.set(on);
                on
            }
        }
    }
}
