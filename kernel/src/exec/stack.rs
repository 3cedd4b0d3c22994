//! The new program's stack, as Linux lays it out (System V ABI, "Process Initialization"; getauxval(3)).
//!
//! From the stack pointer up: argc, argv pointers, NULL, environment pointers, NULL, auxiliary vector, then (padded to 16)
//! the random bytes, the platform's name, arguments, environment, the executed path, and eight zero bytes at the top.

use super::Strings;
use abi::{Errno, Result};
use alloc::vec::Vec;

/// The longest single string (MAX_ARG_STRLEN).
pub const MAX_STRING: usize = 32 * 4096;

/// What the auxiliary vector tells beside constants.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// AT_PHDR.
    pub phdr: u64,
    /// AT_PHNUM.
    pub phnum: u64,
    /// AT_BASE.
    pub base: u64,
    /// AT_ENTRY.
    pub entry: u64,
    /// AT_UID, AT_EUID, AT_GID, AT_EGID.
    pub ids: [u32; 4],
    /// AT_SECURE.
    pub secure: bool,
    /// AT_SYSINFO_EHDR, or 0.
    pub vdso: u64,
}

/// The finished bytes and where they go.
#[derive(Debug)]
pub struct Built {
    /// To be written at `sp`.
    pub bytes: Vec<u8>,
    /// The stack pointer.
    pub sp: u64,
    /// Where the arguments lie.
    pub args: (u64, u64),
    /// Where the environment lies.
    pub env: (u64, u64),
    /// Where the auxiliary vector lies.
    pub aux: (u64, u64),
}

mod at {
    pub const NULL: u64 = 0;
    pub const PHDR: u64 = 3;
    pub const PHENT: u64 = 4;
    pub const PHNUM: u64 = 5;
    pub const PAGESZ: u64 = 6;
    pub const BASE: u64 = 7;
    pub const FLAGS: u64 = 8;
    pub const ENTRY: u64 = 9;
    pub const UID: u64 = 11;
    pub const EUID: u64 = 12;
    pub const GID: u64 = 13;
    pub const EGID: u64 = 14;
    pub const PLATFORM: u64 = 15;
    pub const HWCAP: u64 = 16;
    pub const CLKTCK: u64 = 17;
    pub const SECURE: u64 = 23;
    pub const RANDOM: u64 = 25;
    pub const HWCAP2: u64 = 26;
    pub const EXECFN: u64 = 31;
    pub const SYSINFO_EHDR: u64 = 33;
    pub const MINSIGSTKSZ: u64 = 51;
}

const PLATFORM: &[u8] = b"aarch64\0";
/// What a signal frame needs at most (FP state only).
const MINSIGSTKSZ: u64 = 4720;

/// Builds the stack below `top`. `E2BIG` if arguments and environment exceed a quarter of `stack_limit` (6 MiB at most) or
/// one string exceeds [`MAX_STRING`].
pub fn build(
    top: u64,
    argv: &Strings,
    envp: &Strings,
    path: &[u8],
    facts: &Facts,
    stack_limit: usize,
) -> Result<Built> {
    let pointers = (argv.count() + envp.count()) * 8;
    let total = argv.bytes().len() + envp.bytes().len() + path.len() + 1 + pointers;
    if total > (stack_limit / 4).clamp(128 * 1024, 6 << 20)
        || argv.iter().chain(envp.iter()).any(|s| s.len() >= MAX_STRING)
    {
        return Err(Errno::E2BIG);
    }
    let execfn = top - 8 - (path.len() as u64 + 1);
    let env_start = execfn - envp.bytes().len() as u64;
    let arg_start = env_start - argv.bytes().len() as u64;
    let platform = arg_start - PLATFORM.len() as u64;
    let random = (platform - 16) & !15;

    let aux = auxiliary(facts, execfn, platform, random);
    let words = 1 + argv.count() + 1 + envp.count() + 1 + aux.len() * 2;
    let sp = (random - words as u64 * 8) & !15;

    let aux_start = sp + (words - aux.len() * 2) as u64 * 8;
    let aux_end = sp + words as u64 * 8;

    let mut bytes = Vec::new();
    bytes.try_reserve_exact((top - sp) as usize).map_err(|_| Errno::ENOMEM)?;
    let word = |bytes: &mut Vec<u8>, v: u64| bytes.extend_from_slice(&v.to_le_bytes());
    word(&mut bytes, argv.count() as u64);
    for (strings, start) in [(argv, arg_start), (envp, env_start)] {
        let mut p = start;
        for s in strings.iter() {
            word(&mut bytes, p);
            p += s.len() as u64 + 1;
        }
        word(&mut bytes, 0);
    }
    for (kind, value) in aux {
        word(&mut bytes, kind);
        word(&mut bytes, value);
    }
    bytes.resize((random - sp) as usize, 0);
    for _ in 0..2 {
        word(&mut bytes, ::platform::random_u64());
    }
    bytes.resize((platform - sp) as usize, 0);
    bytes.extend_from_slice(PLATFORM);
    bytes.extend_from_slice(argv.bytes());
    bytes.extend_from_slice(envp.bytes());
    bytes.extend_from_slice(path);
    bytes.resize((top - sp) as usize, 0);
    Ok(Built { bytes, sp, args: (arg_start, env_start), env: (env_start, execfn), aux: (aux_start, aux_end) })
}

fn auxiliary(f: &Facts, execfn: u64, platform: u64, random: u64) -> Vec<(u64, u64)> {
    let cpu = crate::arch::cpu::features();
    let mut aux = Vec::with_capacity(24);
    if f.vdso != 0 {
        aux.push((at::SYSINFO_EHDR, f.vdso));
    }
    aux.extend_from_slice(&[
        (at::MINSIGSTKSZ, MINSIGSTKSZ),
        (at::HWCAP, cpu.hwcap),
        (at::PAGESZ, 4096),
        (at::CLKTCK, 100),
        (at::PHDR, f.phdr),
        (at::PHENT, 56),
        (at::PHNUM, f.phnum),
        (at::BASE, f.base),
        (at::FLAGS, 0),
        (at::ENTRY, f.entry),
        (at::UID, f.ids[0] as u64),
        (at::EUID, f.ids[1] as u64),
        (at::GID, f.ids[2] as u64),
        (at::EGID, f.ids[3] as u64),
        (at::SECURE, u64::from(f.secure)),
        (at::RANDOM, random),
        (at::HWCAP2, cpu.hwcap2),
        (at::EXECFN, execfn),
        (at::PLATFORM, platform),
        (at::NULL, 0),
    ]);
    aux
}
