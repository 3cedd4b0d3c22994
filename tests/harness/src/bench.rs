//! The comparison with Linux.
use crate::error::Outcome;
/// `harness bench`.
pub fn main(_args: &[String]) -> Outcome<bool> {
    Ok(false)
}
