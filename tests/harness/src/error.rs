//! What can go wrong in a case: one type that says which assertion did not hold and what was seen.
//!
//! A negative control names the assertion that must fail, so an assertion's name is part of its meaning: it stays the
//! same between the run in which it must hold and the run in which it must not.

use std::fmt;

/// The result of everything that a case does.
pub type Outcome<T = ()> = Result<T, Failure>;

/// One assertion that did not hold, or a machine that could not be used.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The assertion's name, stable between runs: `boot.prompt`, `run mem`, `cpus.online`.
    pub what: String,
    /// What was expected and what was seen.
    pub detail: String,
}

impl Failure {
    /// A failure of the assertion `what`.
    pub fn new(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), detail: detail.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.detail)
    }
}

/// Input and output errors of the harness itself: a missing kernel, no emulator.
impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        Self::new("harness.io", e.to_string())
    }
}

/// Assert that `held`; the detail is only made when it did not.
pub fn check(held: bool, what: &str, detail: impl FnOnce() -> String) -> Outcome {
    if held { Ok(()) } else { Err(Failure::new(what, detail())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_fails_names_its_assertion() {
        assert!(check(true, "x", String::new).is_ok());
        let f = check(false, "cpus.online", || "3 of 4".into()).err().map(|f| f.to_string());
        assert_eq!(f.as_deref(), Some("cpus.online: 3 of 4"));
    }
}
