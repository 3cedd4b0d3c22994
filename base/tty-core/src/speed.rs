//! Line speeds and their codes in `c_cflag`.

use abi::linux as c;

/// Baud rates by code: `B0`..`B38400` are 0..15, `B57600`..`B4000000` are `CBAUDEX | 1`..`CBAUDEX | 15`.
const LOW: [u32; 16] = [0, 50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19200, 38400];
/// The same for codes with `CBAUDEX`; the first, `BOTHER`, is no rate.
const HIGH: [u32; 16] = [
    0, 57_600, 115_200, 230_400, 460_800, 500_000, 576_000, 921_600, 1_000_000, 1_152_000, 1_500_000, 2_000_000,
    2_500_000, 3_000_000, 3_500_000, 4_000_000,
];

/// The rate that a speed code (the `CBAUD` bits) names; `None` for `BOTHER`, whose rate stands in a field of its own.
fn rate(code: u32) -> Option<u32> {
    let low = (code & 0o17) as usize;
    match code & c::BOTHER {
        0 => Some(LOW[low]),
        _ if low == 0 => None,
        _ => Some(HIGH[low]),
    }
}

/// Output and input speed in baud for a `c_cflag`, given the values of `c_ospeed` and `c_ispeed` for `BOTHER`.
pub(crate) fn from_cflag(cflag: u32, ispeed: u32, ospeed: u32) -> (u32, u32) {
    let output = rate(cflag & c::CBAUD).unwrap_or(ospeed);
    let input_code = (cflag >> c::IBSHIFT) & c::CBAUD;
    // No input code means: the same as output.
    let input = if input_code == 0 { output } else { rate(input_code).unwrap_or(ispeed) };
    (input, output)
}
