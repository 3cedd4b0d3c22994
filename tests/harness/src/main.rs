//! The harness that boots machines and judges them.
fn main() {}
