//! Netlink's messages as bytes (netlink(7)): headers, attributes, and how they are put together and taken apart.

use alloc::vec::Vec;

/// Bytes of a message's header.
pub const HEADER: usize = 16;

/// `NLMSG_ERROR`
pub const ERROR: u16 = 2;
/// `NLMSG_DONE`
pub const DONE: u16 = 3;
/// `NLM_F_REQUEST`
pub const REQUEST: u16 = 1;
/// `NLM_F_MULTI`
pub const MULTI: u16 = 2;
/// `NLM_F_ACK`
pub const ACK: u16 = 4;
/// `NLM_F_DUMP`
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`
pub const EXCL: u16 = 0x200;

fn word(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What is asked for (`RTM_*`).
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// The sender's number for it.
    pub seq: u32,
    /// Header and all, cut to its length.
    pub bytes: &'a [u8],
}

impl<'a> Request<'a> {
    /// What follows the header.
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[HEADER..]
    }

    /// Whether all of a kind is asked for.
    pub fn is_dump(&self) -> bool {
        self.flags & DUMP == DUMP
    }

    /// The byte at `at` of the body; 0 beyond its end.
    pub fn byte(&self, at: usize) -> u8 {
        self.body().get(at).copied().unwrap_or(0)
    }

    /// The word at `at` of the body; 0 beyond its end.
    pub fn word(&self, at: usize) -> u32 {
        word(self.body(), at).unwrap_or(0)
    }

    /// The attribute `kind` behind a fixed part of `fixed` bytes; the last one, if there are several.
    pub fn attribute(&self, fixed: usize, kind: u16) -> Option<&'a [u8]> {
        let mut rest = self.body().get(fixed..)?;
        let mut found = None;
        while let [a, b, c, d, ..] = rest {
            let len = usize::from(u16::from_ne_bytes([*a, *b]));
            if len < 4 || len > rest.len() {
                break;
            }
            // The two high bits say how the content is encoded.
            if u16::from_ne_bytes([*c, *d]) & 0x3fff == kind {
                found = Some(&rest[4..len]);
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        found
    }

    /// As [`Request::attribute`] for a number.
    pub fn number(&self, fixed: usize, kind: u16) -> Option<u32> {
        word(self.attribute(fixed, kind)?, 0)
    }

    /// As [`Request::attribute`] for a name that ends with a zero.
    pub fn name(&self, fixed: usize, kind: u16) -> Option<&'a str> {
        let bytes = self.attribute(fixed, kind)?.split(|c| *c == 0).next()?;
        core::str::from_utf8(bytes).ok()
    }
}

/// The requests in what a program sent; what is malformed ends the list.
pub fn requests(mut bytes: &[u8]) -> impl Iterator<Item = Request<'_>> {
    core::iter::from_fn(move || {
        let len = word(bytes, 0)? as usize;
        if len < HEADER || len > bytes.len() {
            return None;
        }
        let (kind, flags) = (u16::from_ne_bytes([bytes[4], bytes[5]]), u16::from_ne_bytes([bytes[6], bytes[7]]));
        let r = Request { kind, flags, seq: word(bytes, 8)?, bytes: &bytes[..len] };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(r)
    })
}

/// Answers, in portions that fit the buffers of those who read them.
pub struct Answer {
    /// Finished portions.
    pub portions: Vec<Vec<u8>>,
    buf: Vec<u8>,
    start: usize,
    seq: u32,
    port: u32,
    flags: u16,
}

/// A portion's size.
const PORTION: usize = 3584;

impl Answer {
    /// To request number `seq` of the socket `port`.
    pub fn new(seq: u32, port: u32, flags: u16) -> Self {
        Answer { portions: Vec::new(), buf: Vec::new(), start: 0, seq, port, flags }
    }

    /// Of the messages from now on.
    pub fn set_flags(&mut self, flags: u16) {
        self.flags = flags;
    }

    /// Begins a message with its fixed part.
    pub fn begin(&mut self, kind: u16, fixed: &[u8]) {
        if self.buf.len() > PORTION {
            self.portions.push(core::mem::take(&mut self.buf));
        }
        self.start = self.buf.len();
        self.buf.extend([0; 4]);
        self.buf.extend(kind.to_ne_bytes());
        self.buf.extend(self.flags.to_ne_bytes());
        self.buf.extend(self.seq.to_ne_bytes());
        self.buf.extend(self.port.to_ne_bytes());
        self.buf.extend(fixed);
        self.pad();
    }

    fn pad(&mut self) {
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
        let len = (self.buf.len() - self.start) as u32;
        self.buf[self.start..self.start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, kind: u16, data: &[u8]) {
        self.buf.extend((data.len() as u16 + 4).to_ne_bytes());
        self.buf.extend(kind.to_ne_bytes());
        self.buf.extend(data);
        self.pad();
    }

    /// Adds a number.
    pub fn number(&mut self, kind: u16, n: u32) {
        self.attribute(kind, &n.to_ne_bytes());
    }

    /// Adds a name.
    pub fn name(&mut self, kind: u16, name: &str) {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// All portions.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        if !self.buf.is_empty() {
            self.portions.push(self.buf);
        }
        self.portions
    }
}
