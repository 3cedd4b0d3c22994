//! Decompressing deflate (RFC 1951) in pieces.
//!
//! Unpacking the initial root is most of a boot, so this is made for speed where loads, stores and branches are dear:
//!
//! - Input goes through a 64-bit buffer that is filled by one load of eight bytes; one filling holds the most that a
//!   length with its distance takes (48 bits), or three literals.
//! - Codes are looked up by their first 11 bits (9 for distances) in a table whose entry tells everything: kind, length of
//!   the code, base value, and how many extra bits follow. Longer codes go on in a second table behind it.
//! - Output goes to one flat buffer that keeps the last 32 KiB before what is new, so that matches are copied eight bytes at a
//!   time and never wrap around.
//!
//! The fast loop runs while there are eight bytes of input and room for the longest match; near either end the slow one
//! takes input byte by byte and only as much as a symbol needs. A symbol of which a part is missing is not taken at all, so
//! that decoding can go on with the next piece.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// How far back matches may reach.
pub(crate) const WINDOW: usize = 32 * 1024;
/// Length of the output buffer: the window, and room for what is new.
pub(crate) const BUFFER: usize = WINDOW + 64 * 1024;
/// Room for the longest match, copied in whole words.
pub(crate) const SLACK: usize = 258 + 16;

const LITERAL_BITS: u32 = 11;
const DISTANCE_BITS: u32 = 9;
/// The most entries that codes of up to 15 bits over 288 symbols need with a first table of 2^11.
const LITERAL_TABLE: usize = 2400;
/// The same for 32 symbols and 2^9.
const DISTANCE_TABLE: usize = 1024;

// An entry: bits 0-7 length of the code; 8-11 extra bits (or the second table's index bits); 12-27 base value, literal or
// start of the second table; then what it is. 0 is no code.
const LITERAL: u32 = 1 << 31;
const SECOND: u32 = 1 << 30;
const END: u32 = 1 << 29;
const VALUE: u32 = 1 << 28;

const fn entry(kind: u32, value: u32, extra: u32) -> u32 {
    kind | value << 12 | extra << 8
}

/// Entries without the length of their code, by symbol: literals, the end, lengths.
static LITERALS: [u32; 288] = {
    let mut table = [0; 288];
    let mut i = 0;
    while i < 256 {
        table[i] = entry(LITERAL, i as u32, 0);
        i += 1;
    }
    table[256] = entry(END, 0, 0);
    let (mut symbol, mut base) = (257, 3);
    while symbol < 285 {
        let extra = if symbol < 265 { 0 } else { (symbol as u32 - 261) / 4 };
        table[symbol] = entry(VALUE, base, extra);
        base += 1 << extra;
        symbol += 1;
    }
    table[285] = entry(VALUE, 258, 0);
    table
};

/// The same of distances.
static DISTANCES: [u32; 32] = {
    let mut table = [0; 32];
    let (mut symbol, mut base) = (0, 1);
    while symbol < 30 {
        let extra = if symbol < 4 { 0 } else { symbol as u32 / 2 - 1 };
        table[symbol] = entry(VALUE, base, extra);
        base += 1 << extra;
        symbol += 1;
    }
    table
};

/// In which order a block's header gives the lengths of the codes for code lengths.
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// The stream is corrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadData;

/// Why [`Inflate::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// All input is taken.
    NeedsInput,
    /// There may be no room for the next symbol.
    Full,
    /// The stream has ended.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a block.
    Block,
    /// Before a stored block's length.
    StoredLength,
    /// This much of a stored block is left.
    Stored(usize),
    /// Before a dynamic block's counts.
    Counts,
    /// In the lengths of the codes for code lengths, this one next.
    CodeLengths(usize),
    /// In the lengths of the codes, this one next.
    Lengths(usize),
    /// In a block's symbols.
    Symbols,
    /// After the last block.
    Done,
}

/// A decoder, with about 14 KiB of tables on the heap.
pub(crate) struct Inflate {
    state: State,
    last: bool,
    bits: u64,
    count: u32,
    /// How many codes a dynamic block has: literals, distances, lengths.
    counts: (usize, usize, usize),
    lengths: [u8; 288 + 32],
    literals: Box<[u32; LITERAL_TABLE]>,
    distances: Box<[u32; DISTANCE_TABLE]>,
}

/// An array on the heap, never on the stack; `None`: no memory.
pub(crate) fn boxed<T: Copy + Default, const N: usize>() -> Option<Box<[T; N]>> {
    let mut all = Vec::new();
    all.try_reserve_exact(N).ok()?;
    all.resize(N, T::default());
    all.into_boxed_slice().try_into().ok()
}

/// Where input is taken from, and how much of it has been.
struct Input<'a> {
    data: &'a [u8],
    at: usize,
}

const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

impl Inflate {
    /// `None`: no memory.
    pub(crate) fn new() -> Option<Self> {
        Some(Inflate {
            state: State::Block,
            last: false,
            bits: 0,
            count: 0,
            counts: (0, 0, 0),
            lengths: [0; 320],
            literals: boxed()?,
            distances: boxed()?,
        })
    }

    /// To the start of a stream.
    pub(crate) fn reset(&mut self) {
        self.state = State::Block;
        self.last = false;
        self.bits = 0;
        self.count = 0;
    }

    /// Decodes `data` to `out`, from `*at` on, before which lies what was decoded before (up to the window, or all of it).
    /// Returns why it stopped and how many bytes were taken.
    pub(crate) fn run(
        &mut self,
        data: &[u8],
        out: &mut [u8; BUFFER],
        at: &mut usize,
    ) -> Result<(Status, usize), BadData> {
        let mut input = Input { data, at: 0 };
        let status = self.blocks(&mut input, out, at)?;
        if status != Status::NeedsInput {
            // Whole bytes that were not needed go back.
            let back = (self.count as usize / 8).min(input.at);
            input.at -= back;
            self.count -= 8 * back as u32;
            self.bits &= mask(self.count);
        }
        Ok((status, input.at))
    }

    fn blocks(&mut self, input: &mut Input<'_>, out: &mut [u8; BUFFER], at: &mut usize) -> Result<Status, BadData> {
        loop {
            match self.state {
                State::Done => return Ok(Status::Done),
                State::Symbols => {
                    if let Some(status) = self.symbols(input, out, at)? {
                        return Ok(status);
                    }
                    self.end_block();
                }
                State::Stored(0) => self.end_block(),
                State::Stored(left) => {
                    let room = BUFFER - *at;
                    if room == 0 {
                        return Ok(Status::Full);
                    }
                    let Some(copied) = self.stored(input, out, *at, left.min(room)) else {
                        return Ok(Status::NeedsInput);
                    };
                    *at += copied;
                    self.state = State::Stored(left - copied);
                }
                _ => {
                    if !self.header(input)? {
                        return Ok(Status::NeedsInput);
                    }
                }
            }
        }
    }

    fn end_block(&mut self) {
        self.state = if self.last { State::Done } else { State::Block };
    }

    /// Makes `wanted` bits (32 at most) be there, if there is input for them.
    fn need(&mut self, input: &mut Input<'_>, wanted: u32) -> bool {
        while self.count < wanted {
            let Some(&byte) = input.data.get(input.at) else { return false };
            input.at += 1;
            self.bits |= u64::from(byte) << self.count;
            self.count += 8;
        }
        true
    }

    fn take(&mut self, bits: u32) -> usize {
        let value = self.bits & mask(bits);
        self.bits >>= bits;
        self.count -= bits;
        value as usize
    }

    /// Copies up to `most` bytes of a stored block; `None`: no input.
    fn stored(&mut self, input: &mut Input<'_>, out: &mut [u8; BUFFER], at: usize, most: usize) -> Option<usize> {
        if self.count >= 8 {
            *out.get_mut(at)? = self.take(8) as u8;
            return Some(1);
        }
        let rest = input.data.get(input.at..)?;
        let from = rest.get(..most.min(rest.len())).filter(|from| !from.is_empty())?;
        out.get_mut(at..at + from.len())?.copy_from_slice(from);
        input.at += from.len();
        Some(from.len())
    }

    /// One step through a block's header; false: needs more input.
    fn header(&mut self, input: &mut Input<'_>) -> Result<bool, BadData> {
        match self.state {
            State::Block => {
                if !self.need(input, 3) {
                    return Ok(false);
                }
                self.last = self.take(1) == 1;
                match self.take(2) {
                    0 => {
                        self.take(self.count % 8);
                        self.state = State::StoredLength;
                    }
                    1 => {
                        for (i, l) in self.lengths.iter_mut().enumerate() {
                            *l = [8, 9, 7, 8, 5][[144, 256, 280, 288].iter().filter(|&&b| i >= b).count()];
                        }
                        self.make_tables(288, 32)?;
                    }
                    2 => self.state = State::Counts,
                    _ => return Err(BadData),
                }
            }
            State::StoredLength => {
                if !self.need(input, 32) {
                    return Ok(false);
                }
                let (len, inverse) = (self.take(16), self.take(16));
                if len != inverse ^ 0xffff {
                    return Err(BadData);
                }
                self.state = State::Stored(len);
            }
            State::Counts => {
                if !self.need(input, 14) {
                    return Ok(false);
                }
                self.counts = (self.take(5) + 257, self.take(5) + 1, self.take(4) + 4);
                if self.counts.0 > 286 || self.counts.1 > 30 {
                    return Err(BadData);
                }
                self.lengths = [0; 320];
                self.state = State::CodeLengths(0);
            }
            State::CodeLengths(i) if i < self.counts.2 => {
                if !self.need(input, 3) {
                    return Ok(false);
                }
                let length = self.take(3) as u8;
                self.lengths[ORDER[i]] = length;
                self.state = State::CodeLengths(i + 1);
            }
            State::CodeLengths(_) => {
                let symbols: [u32; 19] = core::array::from_fn(|i| entry(VALUE, i as u32, 0));
                // Codes of up to 7 bits: all in the first table.
                build(&self.lengths[..19], &symbols, 7, &mut self.distances[..], false)?;
                self.lengths = [0; 320];
                self.state = State::Lengths(0);
            }
            State::Lengths(i) if i < self.counts.0 + self.counts.1 => return self.length(input, i),
            State::Lengths(_) => {
                // Without an end a block cannot be.
                if self.lengths[256] == 0 {
                    return Err(BadData);
                }
                let (literals, distances) = (self.counts.0, self.counts.1);
                // Distances stand right behind the literals: apart they are easier.
                let mut apart = [0; 32];
                apart[..distances].copy_from_slice(&self.lengths[literals..literals + distances]);
                self.lengths[288..].copy_from_slice(&apart);
                self.make_tables(literals, distances)?;
            }
            _ => {}
        }
        Ok(true)
    }

    /// The next length of a code, or a run of them; false: needs more input.
    fn length(&mut self, input: &mut Input<'_>, i: usize) -> Result<bool, BadData> {
        let found = loop {
            let found = self.distances[(self.bits & mask(7)) as usize];
            let (symbol, code) = ((found >> 12) as u16, found & 0xff);
            let extra = [2, 3, 7].get((symbol as usize).wrapping_sub(16)).copied().unwrap_or(0);
            if found != 0 && self.count >= code + extra {
                self.take(code);
                break (symbol, extra);
            }
            if found == 0 && self.count >= 7 {
                return Err(BadData);
            }
            if !self.need(input, self.count + 1) {
                return Ok(false);
            }
        };
        let (length, times) = match found {
            (length @ ..16, _) => (length as u8, 1),
            (16, extra) => match i.checked_sub(1) {
                Some(before) => (self.lengths[before], 3 + self.take(extra)),
                None => return Err(BadData),
            },
            (17, extra) => (0, 3 + self.take(extra)),
            (_, extra) => (0, 11 + self.take(extra)),
        };
        if i + times > self.counts.0 + self.counts.1 {
            return Err(BadData);
        }
        self.lengths[i..i + times].fill(length);
        self.state = State::Lengths(i + times);
        Ok(true)
    }

    fn make_tables(&mut self, literals: usize, distances: usize) -> Result<(), BadData> {
        let (l, d) = self.lengths.split_at(288);
        build(&l[..literals], &LITERALS, LITERAL_BITS, &mut self.literals[..], true)?;
        build(&d[..distances], &DISTANCES, DISTANCE_BITS, &mut self.distances[..], true)?;
        self.state = State::Symbols;
        Ok(())
    }

    /// Decodes symbols; `None`: to the end of the block.
    fn symbols(
        &mut self,
        input: &mut Input<'_>,
        out: &mut [u8; BUFFER],
        at: &mut usize,
    ) -> Result<Option<Status>, BadData> {
        loop {
            if self.fast(input, out, at)? {
                return Ok(None);
            }
            if *at + SLACK > BUFFER {
                return Ok(Some(Status::Full));
            }
            match self.slow(input, out, at)? {
                Slow::Symbol => {}
                Slow::End => return Ok(None),
                Slow::NeedsInput => return Ok(Some(Status::NeedsInput)),
            }
        }
    }

    /// Decodes symbols while there is enough input and room; whether it came to the end of the block.
    fn fast(&mut self, input: &mut Input<'_>, out: &mut [u8; BUFFER], at: &mut usize) -> Result<bool, BadData> {
        let (mut bits, mut count, mut to) = (self.bits, self.count, *at);
        let mut rest = input.data.get(input.at..).unwrap_or(&[]);
        let mut result = Ok(false);
        // What a filling adds beyond what was taken of it is there again in the next load.
        while to + SLACK <= BUFFER {
            let Some(word) = rest.first_chunk::<8>() else { break };
            bits |= u64::from_le_bytes(*word) << count;
            let bytes = (63 - count as usize) / 8;
            rest = &rest[bytes..];
            count += 8 * bytes as u32;
            let mut e = self.literals[(bits & mask(LITERAL_BITS)) as usize];
            if e & LITERAL != 0 {
                bits >>= e & 63;
                count -= e & 0xff;
                out[to] = (e >> 12) as u8;
                to += 1;
                e = self.literals[(bits & mask(LITERAL_BITS)) as usize];
                if e & LITERAL != 0 {
                    bits >>= e & 63;
                    count -= e & 0xff;
                    out[to] = (e >> 12) as u8;
                    to += 1;
                    e = self.literals[(bits & mask(LITERAL_BITS)) as usize];
                    if e & LITERAL != 0 {
                        bits >>= e & 63;
                        count -= e & 0xff;
                        out[to] = (e >> 12) as u8;
                        to += 1;
                    }
                    // 23 bits at least are left: not enough for a match.
                    continue;
                }
                // One literal of 11 bits leaves 45: a match might need three more.
                if count < 48 {
                    continue;
                }
            }
            if e & SECOND != 0 {
                e = second(&self.literals[..], e, bits, LITERAL_BITS);
                if e & LITERAL != 0 {
                    bits >>= e & 63;
                    count -= e & 0xff;
                    out[to] = (e >> 12) as u8;
                    to += 1;
                    continue;
                }
            }
            if e & VALUE == 0 {
                if e & END != 0 {
                    bits >>= e & 63;
                    count -= e & 0xff;
                    result = Ok(true);
                } else {
                    result = Err(BadData);
                }
                break;
            }
            bits >>= e & 63;
            let extra = e >> 8 & 15;
            let length = (e >> 12 & 0xffff) as usize + (bits & mask(extra)) as usize;
            bits >>= extra;
            let mut d = self.distances[(bits & mask(DISTANCE_BITS)) as usize];
            if d & SECOND != 0 {
                d = second(&self.distances[..], d, bits, DISTANCE_BITS);
            }
            bits >>= d & 63;
            let more = d >> 8 & 15;
            let distance = (d >> 12 & 0xffff) as usize + (bits & mask(more)) as usize;
            bits >>= more;
            count -= (e & 0xff) + extra + (d & 0xff) + more;
            if d == 0 || distance > to {
                result = Err(BadData);
                break;
            }
            copy(out, to, distance, length);
            to += length;
        }
        // The bits beyond `count` are of bytes that were not taken.
        (self.bits, self.count) = (bits & mask(count), count);
        input.at = input.data.len() - rest.len();
        *at = to;
        result
    }

    /// Decodes one symbol with as little input as it needs.
    fn slow(&mut self, input: &mut Input<'_>, out: &mut [u8; BUFFER], at: &mut usize) -> Result<Slow, BadData> {
        loop {
            if let Some(done) = self.symbol(out, at)? {
                return Ok(done);
            }
            let before = self.count;
            if !self.need(input, before + 1) {
                return Ok(Slow::NeedsInput);
            }
        }
    }

    /// Decodes one symbol if all its bits are there.
    fn symbol(&mut self, out: &mut [u8; BUFFER], at: &mut usize) -> Result<Option<Slow>, BadData> {
        let (bits, count) = (self.bits, self.count);
        let mut e = self.literals[(bits & mask(LITERAL_BITS)) as usize];
        if e & SECOND != 0 {
            e = second(&self.literals[..], e, bits, LITERAL_BITS);
        }
        let (code, extra) = (e & 0xff, e >> 8 & 15);
        if e == 0 {
            return if count >= 15 { Err(BadData) } else { Ok(None) };
        }
        if count < code + extra {
            return Ok(None);
        }
        if e & VALUE == 0 {
            self.take(code);
            if e & END != 0 {
                return Ok(Some(Slow::End));
            }
            *out.get_mut(*at).ok_or(BadData)? = (e >> 12) as u8;
            *at += 1;
            return Ok(Some(Slow::Symbol));
        }
        let length = (e >> 12 & 0xffff) as usize + (bits >> code & mask(extra)) as usize;
        let (rest, left) = (bits >> (code + extra), count - code - extra);
        let mut d = self.distances[(rest & mask(DISTANCE_BITS)) as usize];
        if d & SECOND != 0 {
            d = second(&self.distances[..], d, rest, DISTANCE_BITS);
        }
        let (dcode, dextra) = (d & 0xff, d >> 8 & 15);
        if d == 0 {
            return if left >= 15 { Err(BadData) } else { Ok(None) };
        }
        if left < dcode + dextra {
            return Ok(None);
        }
        let distance = (d >> 12 & 0xffff) as usize + (rest >> dcode & mask(dextra)) as usize;
        if distance > *at {
            return Err(BadData);
        }
        self.take(code + extra);
        self.take(dcode + dextra);
        copy(out, *at, distance, length);
        *at += length;
        Ok(Some(Slow::Symbol))
    }
}

enum Slow {
    Symbol,
    End,
    NeedsInput,
}

/// The entry of a code that is longer than the first table's index.
#[inline]
fn second(table: &[u32], e: u32, bits: u64, first: u32) -> u32 {
    let at = (e >> 12 & 0xffff) as usize + (bits >> first & mask(e >> 8 & 15)) as usize;
    table.get(at).copied().unwrap_or(0)
}

/// Copies a match of `length` bytes from `distance` (at least 1, at most `to`) before `to`, by words; up to a word more is
/// written behind it.
#[inline]
fn copy(out: &mut [u8; BUFFER], to: usize, distance: usize, length: usize) {
    let (mut from, end) = (to - distance, to + length);
    let mut to = to;
    if distance >= 8 {
        loop {
            let Some(word) = out.get(from..).and_then(|s| s.first_chunk::<8>()).copied() else { return };
            let Some(place) = out.get_mut(to..).and_then(|s| s.first_chunk_mut::<8>()) else { return };
            *place = word;
            (from, to) = (from + 8, to + 8);
            if to >= end {
                return;
            }
        }
    }
    if distance == 1 {
        let byte = out[from];
        if let Some(run) = out.get_mut(to..end) {
            run.fill(byte);
        }
        return;
    }
    while to < end {
        out[to] = out[from];
        (from, to) = (from + 1, to + 1);
    }
}

/// Fills `table` for canonical codes of these lengths: `first` bits of index, then second tables. A set of codes must use up
/// all bit patterns, but for one of a single code of one bit (or of none, for distances): what is left of it is no code.
fn build(lengths: &[u8], symbols: &[u32], first: u32, table: &mut [u32], may_be_single: bool) -> Result<(), BadData> {
    let mut counts = [0usize; 16];
    for &l in lengths {
        counts[l as usize & 15] += 1;
    }
    let used = lengths.len() - counts[0];
    counts[0] = 0;
    let (mut left, mut next) = (1i32, [0u32; 17]);
    for length in 1..16 {
        left = (left << 1) - counts[length] as i32;
        if left < 0 {
            return Err(BadData);
        }
        next[length + 1] = (next[length] + counts[length] as u32) << 1;
    }
    let size = 1usize << first;
    if left > 0 {
        if !(may_be_single && (used == 0 || used == 1 && counts[1] == 1)) {
            return Err(BadData);
        }
        table[..size].fill(0);
    }
    let mut free = size;
    // The second table that is being filled: its codes come one after the other.
    let (mut prefix, mut start, mut width) = (u32::MAX, 0, 0);
    for length in 1..16u32 {
        if counts[length as usize] == 0 {
            continue;
        }
        for (symbol, &l) in lengths.iter().enumerate() {
            if u32::from(l) != length {
                continue;
            }
            let code = next[length as usize];
            next[length as usize] += 1;
            let reversed = code.reverse_bits() >> (32 - length);
            let e = symbols.get(symbol).copied().unwrap_or(0);
            // A symbol that has a code but no meaning: no code.
            let e = if e == 0 { 0 } else { e | length };
            if length <= first {
                let mut i = reversed as usize;
                while i < size {
                    table[i] = e;
                    i += 1 << length;
                }
                continue;
            }
            let head = reversed & mask(first) as u32;
            if head != prefix {
                prefix = head;
                start = free;
                // Wide enough for all codes that begin like this: as many as the longer ones are.
                width = length - first;
                let mut room = 1i32 << width;
                while width + first < 15 {
                    // Codes of this length that are still to come, this one included.
                    let l = (width + first) as usize;
                    let coming = if l == length as usize { remaining(lengths, symbol, l) } else { counts[l] as i32 };
                    room -= coming;
                    if room <= 0 {
                        break;
                    }
                    width += 1;
                    room <<= 1;
                }
                free += 1 << width;
                if free > table.len() {
                    return Err(BadData);
                }
                table[head as usize] = entry(SECOND, start as u32, width) | first;
            }
            let mut i = (reversed >> first) as usize;
            while i < 1 << width {
                table[start + i] = e;
                i += 1 << (length - first);
            }
        }
    }
    Ok(())
}

/// How many symbols from `symbol` on have a code of this length.
fn remaining(lengths: &[u8], symbol: usize, length: usize) -> i32 {
    lengths[symbol..].iter().filter(|&&l| l as usize == length).count() as i32
}

#[cfg(test)]
mod tests;
