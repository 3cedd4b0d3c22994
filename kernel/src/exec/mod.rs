//! Loading a program: from a file to an address space that is ready to run.
//!
//! It takes two steps, because a new space can only be written once it is loaded in the CPU. [`prepare`] reads the headers,
//! follows the interpreter, and makes every mapping in a fresh space; it can fail, and then nothing has changed for the
//! caller. The caller then makes the space its own (the point of no return) and calls [`Program::finish`], which writes
//! the stack and clears what follows the files' data; if that fails the process dies.
//!
//! Placement: fixed programs where they say; position-independent ones at the space's `pie_base`, the interpreter below
//! `mmap_top`, the stack below `stack_top`, the heap at a random distance behind the program. All are random and in one
//! slot of 512 GiB (see `mm::space::Layout`).
//!
//! Limits: those of `elf-image`; arguments and environment together take at most a quarter of the stack's limit, one
//! string at most 128 KiB (execve(2)).

pub mod stack;

use crate::mm::space::Limits;
use crate::mm::{AddressSpace, Backing, MapRequest, Mappable, Mapped, Place, Prot, VmFlags};
use abi::{Errno, Result};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use elf_image::{ElfError, Kind, Plan, Segment};

const PAGE: u64 = 4096;
/// What is mapped of the stack at first, beyond what exec itself writes; it grows on faults.
const INITIAL_STACK: usize = 128 * 1024;

/// A file to be executed.
pub trait Image {
    /// Reads up to `buf.len()` bytes at `offset`; fewer only at the end. May sleep.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// What its pages are mapped from.
    fn object(&self) -> Arc<dyn Mappable>;
}

/// Strings one behind the other, each ended by a NUL.
#[derive(Clone, Debug, Default)]
pub struct Strings {
    bytes: Vec<u8>,
    count: usize,
}

impl Strings {
    /// None.
    pub const fn new() -> Self {
        Strings { bytes: Vec::new(), count: 0 }
    }

    /// Adds `s` (without its NUL). `ENOMEM`.
    pub fn push(&mut self, s: &[u8]) -> Result<()> {
        self.bytes.try_reserve(s.len() + 1).map_err(|_| Errno::ENOMEM)?;
        self.bytes.extend_from_slice(s);
        self.bytes.push(0);
        self.count += 1;
        Ok(())
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// All bytes, NULs included.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Each string without its NUL.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split(|&b| b == 0).take(self.count)
    }
}

/// What is to be executed, and how.
pub struct Request<'a> {
    /// The file.
    pub image: &'a dyn Image,
    /// Arguments, argv[0] included.
    pub argv: &'a Strings,
    /// Environment.
    pub envp: &'a Strings,
    /// The path as the caller gave it (AT_EXECFN).
    pub path: &'a [u8],
    /// Real and effective user, real and effective group, after set-id bits.
    pub ids: [u32; 4],
    /// AT_SECURE: the program runs with other rights than its caller's.
    pub secure: bool,
    /// The program's file is marked as needing writable and executable memory.
    pub wx_allowed: bool,
    /// Limits of the new space.
    pub limits: Limits,
    /// Opens the interpreter that the program names.
    #[allow(clippy::type_complexity)]
    pub open: &'a mut dyn FnMut(&[u8]) -> Result<Box<dyn Image>>,
}

impl core::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Request").field("ids", &self.ids).finish_non_exhaustive()
    }
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    /// Its address space.
    pub space: Arc<AddressSpace>,
    /// Where it starts: in the interpreter if there is one.
    pub entry: u64,
    /// The stack pointer it starts with.
    pub sp: u64,
    /// Where its arguments lie (for /proc/PID/cmdline).
    pub args: (u64, u64),
    /// Where its environment lies.
    pub env: (u64, u64),
    /// Where the auxiliary vector lies.
    pub aux: (u64, u64),
    stack: Vec<u8>,
    clear: Vec<(u64, usize)>,
}

fn from_elf(e: ElfError) -> Errno {
    match e {
        ElfError::NotExec => Errno::ENOEXEC,
        ElfError::Invalid => Errno::EINVAL,
    }
}

/// Reads from `offset` until `buf` is full or the file ends; how much that was. No file reaches to an offset above
/// `i64::MAX`, so there it has ended.
pub fn read_full(image: &dyn Image, offset: u64, buf: &mut [u8]) -> Result<usize> {
    if offset.checked_add(buf.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
        return Ok(0);
    }
    let mut done = 0;
    while done < buf.len() {
        match image.read_at(offset + done as u64, &mut buf[done..])? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// Reads a file's headers. `ENOEXEC`, `EINVAL`, or what reading the file gives. On the heap, since a plan is large for a
/// kernel stack.
#[inline(never)]
fn plan_of(image: &dyn Image) -> Result<Box<Plan>> {
    let mut head = [0u8; 1024];
    let n = read_full(image, 0, &mut head)?;
    let mut failed = None;
    let mut plan = Box::new(Plan::empty());
    let parsed = elf_image::parse_into(&mut plan, &head[..n], |offset, buf| match read_full(image, offset, buf) {
        Ok(n) => n == buf.len(),
        Err(e) => {
            failed = Some(e);
            false
        }
    });
    failed.map_or_else(|| parsed.map(|()| plan).map_err(from_elf), Err)
}

/// Makes the program's address space. Errors as execve(2); nothing has changed then. May sleep.
pub fn prepare(request: &mut Request<'_>) -> Result<Program> {
    let plan = plan_of(request.image)?;
    let interpreter = match &plan.interp {
        None => None,
        Some(path) => {
            let image = (request.open)(path)?;
            let plan = plan_of(&*image).map_err(|e| if e == Errno::ENOEXEC { Errno::ELIBBAD } else { e })?;
            Some((image, plan))
        }
    };
    let space = AddressSpace::new()?;
    space.set_limits(request.limits);
    space.set_wx_allowed(request.wx_allowed);
    let layout = space.layout();
    let mut clear = Vec::new();
    let align = plan.align.max(PAGE);
    let pie = (layout.pie_base as u64).next_multiple_of(align).wrapping_sub(plan.span.0 & !(align - 1));
    let bias = if plan.kind == Kind::Fixed { 0 } else { pie };
    map_segments(&space, request.image, &plan, bias, &mut clear)?;
    let brk = bias + plan.span.1 + (platform::random_u64() & 0x1fff) * PAGE;
    space.set_brk_start(brk as usize);
    let mut entry = bias.wrapping_add(plan.entry);
    let mut base = 0;
    if let Some((image, iplan)) = &interpreter {
        base = place_interpreter(&space, iplan)?;
        map_segments(&space, &**image, iplan, base, &mut clear)?;
        entry = base.wrapping_add(iplan.entry);
    }
    let aux = stack::Facts {
        phdr: plan.phdr_vaddr.map_or(0, |v| bias.wrapping_add(v)),
        phnum: plan.phnum as u64,
        base,
        entry: bias.wrapping_add(plan.entry),
        ids: request.ids,
        secure: request.secure,
        // Without memory for it programs make the calls.
        vdso: space.map_vdso().unwrap_or(0) as u64,
    };
    let top = layout.stack_top as u64;
    let built = stack::build(top, request.argv, request.envp, request.path, &aux, request.limits.stack)?;
    let size = (top - built.sp) as usize + INITIAL_STACK;
    let size = size.next_multiple_of(PAGE as usize);
    space.map(MapRequest {
        place: Place::Fixed(layout.stack_top - size),
        len: size,
        prot: Prot::READ | Prot::WRITE,
        flags: VmFlags::GROWSDOWN,
        backing: Backing::Anon,
        populate: false,
    })?;
    Ok(Program {
        space,
        entry,
        sp: built.sp,
        args: built.args,
        env: built.env,
        aux: built.aux,
        stack: built.bytes,
        clear,
    })
}

/// Finds room for all of the interpreter's segments; the bias to add to their addresses.
fn place_interpreter(space: &AddressSpace, plan: &Plan) -> Result<u64> {
    if plan.kind == Kind::Fixed {
        return Ok(0);
    }
    let len = (plan.span.1 - plan.span.0) as usize;
    // A probe: what is mapped there is replaced segment by segment, and the rest unmapped.
    let at = space.map(MapRequest {
        place: Place::Any(0),
        len: len + (plan.align - PAGE) as usize,
        prot: Prot::empty(),
        flags: VmFlags::NORESERVE,
        backing: Backing::Anon,
        populate: false,
    })?;
    space.unmap(at, len + (plan.align - PAGE) as usize)?;
    Ok((at as u64).next_multiple_of(plan.align).wrapping_sub(plan.span.0))
}

fn map_segments(
    space: &AddressSpace,
    image: &dyn Image,
    plan: &Plan,
    bias: u64,
    clear: &mut Vec<(u64, usize)>,
) -> Result<()> {
    let object = image.object();
    for s in &plan.segments {
        map_segment(space, &object, s, bias, plan.overlap, clear)?;
    }
    Ok(())
}

fn map_segment(
    space: &AddressSpace,
    object: &Arc<dyn Mappable>,
    s: &Segment,
    bias: u64,
    replace: bool,
    clear: &mut Vec<(u64, usize)>,
) -> Result<()> {
    // Segments that share a page replace one another in the file's order, as on Linux.
    let place = |at: u64| if replace { Place::Fixed(at as usize) } else { Place::FixedFree(at as usize) };
    let mut prot = Prot::empty();
    prot.set(Prot::READ, s.read);
    prot.set(Prot::WRITE, s.write);
    prot.set(Prot::EXEC, s.exec);
    let vaddr = bias.wrapping_add(s.vaddr);
    let start = vaddr - vaddr % PAGE;
    let file_end = vaddr + s.file_len;
    let mem_end = vaddr.checked_add(s.mem_len).ok_or(Errno::ENOMEM)?.next_multiple_of(PAGE);
    let mapped_end = if s.file_len > 0 { file_end.next_multiple_of(PAGE) } else { start };
    if s.file_len > 0 {
        space.map(MapRequest {
            place: place(start),
            len: (mapped_end - start) as usize,
            prot,
            flags: VmFlags::empty(),
            backing: Backing::Object { object: Mapped::new(object.clone()), offset: s.offset - vaddr % PAGE },
            populate: false,
        })?;
        if s.mem_len > s.file_len && s.write && mapped_end > file_end {
            clear.push((file_end, (mapped_end - file_end) as usize));
        }
    }
    if mem_end > mapped_end {
        space.map(MapRequest {
            place: place(mapped_end),
            len: (mem_end - mapped_end) as usize,
            prot,
            flags: VmFlags::empty(),
            backing: Backing::Anon,
            populate: false,
        })?;
    }
    Ok(())
}

impl Program {
    /// Writes the stack and clears what must be zero. The program's space is the running thread's now. `EFAULT` where that
    /// is impossible (out of memory, a file shorter than its headers say): the process must die. May sleep.
    pub fn finish(&self) -> Result<()> {
        use crate::arch::uaccess::{self, UserAddr};
        for &(at, len) in &self.clear {
            uaccess::clear_user(UserAddr(at), len).map_err(|_| Errno::EFAULT)?;
        }
        uaccess::copy_to_user(UserAddr(self.sp), &self.stack).map_err(|_| Errno::EFAULT)
    }
}
