//! The kernel's command line, read as Linux reads it (`kernel/params.c`, the kernel-parameters document).
//!
//! Words are separated by blanks; double quotes keep blanks, and are dropped where they enclose a whole word or a whole
//! value. A word is a flag (`quiet`) or `key=value`. In keys `-` and `_` are the same. What follows a lone `--` belongs
//! to init, which also gets the words that the kernel doesn't know: those without a dot, as environment if they have a
//! value and as arguments if not.
//!
//! Nothing is copied or allocated: a [`Cmdline`] is a view of the line, and each question reads it again. Lines are at
//! most a few KiB and questions are asked at boot.

/// A command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cmdline<'a> {
    line: &'a [u8],
}

/// One word of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    /// What is before the first `=`.
    pub key: &'a [u8],
    /// What is behind it, without enclosing quotes; `None` if there is no `=`.
    pub value: Option<&'a [u8]>,
}

impl<'a> Param<'a> {
    /// Whether the key is `name`, `-` and `_` being the same.
    pub fn is(&self, name: &str) -> bool {
        let same = |a: u8, b: u8| a == b || matches!((a, b), (b'-', b'_') | (b'_', b'-'));
        self.key.len() == name.len() && self.key.iter().zip(name.bytes()).all(|(a, b)| same(*a, b))
    }

    /// The value as text; empty for a flag, `None` if it isn't UTF-8.
    pub fn text(&self) -> Option<&'a str> {
        core::str::from_utf8(self.value.unwrap_or(&[])).ok()
    }
}

/// What one word asks of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForInit<'a> {
    /// An argument of init.
    Argument(&'a [u8]),
    /// A variable of its environment: the whole `key=value`, as the line has it.
    Environment(&'a [u8], &'a [u8]),
}

/// What to do with a page that is writable and executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WxPolicy {
    /// Refuse.
    Deny,
    /// Allow, and say so in the log (`wx=log`).
    Log,
}

/// What to do after a panic (`panic=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicAction {
    /// Stay.
    Halt,
    /// Reset at once.
    ResetNow,
    /// Reset after that many seconds.
    ResetAfter(u32),
}

const KNOWN: &[&str] = &[
    "console",
    "init",
    "rdinit",
    "root",
    "rootfstype",
    "rootflags",
    "ro",
    "rw",
    "quiet",
    "debug",
    "loglevel",
    "maxcpus",
    "nosmp",
    "panic",
    "wx",
    "trace",
    "nokaslr",
    "earlycon",
    "mem",
    "mitigations",
    "kpti",
];

impl<'a> Cmdline<'a> {
    /// A view of `line`, which ends at its first NUL or its last byte.
    pub fn new(line: &'a [u8]) -> Self {
        let len = line.iter().position(|byte| *byte == 0).unwrap_or(line.len());
        Self { line: &line[..len] }
    }

    /// The whole line.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.line
    }

    /// The kernel's words: those before `--`.
    pub fn params(&self) -> impl Iterator<Item = Param<'a>> + use<'a> {
        Words { rest: self.line }.take_while(|word| *word != b"--").map(split)
    }

    /// The last word with that key: later ones win.
    pub fn get(&self, key: &str) -> Option<Param<'a>> {
        self.params().filter(|param| param.is(key)).last()
    }

    /// The last value of that key as text; empty for a bare flag.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.text()
    }

    /// The last value of that key as a number: decimal, or hexadecimal with `0x`, with `K`, `M` or `G` behind it. `None`
    /// if there is none or it isn't a number.
    pub fn number(&self, key: &str) -> Option<u64> {
        parse_number(self.text(key)?)
    }

    /// Whether that key is given: bare, or with a value that doesn't mean no (`0`, `n`, `no`, `off`).
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|param| !matches!(param.text(), Some("0" | "n" | "N" | "no" | "off")))
    }

    /// Whether a list such as `berth.sabotage=a,b` holds `item`. All words with that key count.
    pub fn lists(&self, key: &str, item: &str) -> bool {
        let mut words = self.params().filter(|param| param.is(key)).filter_map(|param| param.text());
        words.any(|text| text.split(',').any(|have| have == item))
    }

    /// The program to start from an initial root: `rdinit=`, or `/init`.
    pub fn rdinit(&self) -> &'a [u8] {
        self.get("rdinit").and_then(|param| param.value).filter(|path| !path.is_empty()).unwrap_or(b"/init")
    }

    /// The program to start from a real root: `init=`.
    pub fn init(&self) -> Option<&'a [u8]> {
        self.get("init")?.value.filter(|path| !path.is_empty())
    }

    /// The consoles in the order given (device name, options behind the comma); `/dev/console` is the last.
    pub fn consoles(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let named = self.params().filter(|param| param.is("console")).filter_map(|param| param.text());
        named.map(|text| text.split_once(',').unwrap_or((text, "")))
    }

    /// Least urgent level that is *not* shown on the console: `loglevel=`, else 4 with `quiet`, 10 with `debug`, 7 without.
    pub fn loglevel(&self) -> u8 {
        let mut level = 7;
        for param in self.params() {
            match param.key {
                b"quiet" => level = 4,
                b"debug" => level = 10,
                b"loglevel" => level = param.text().and_then(parse_number).map_or(level, |n| n.min(15) as u8),
                _ => {}
            }
        }
        level
    }

    /// How many CPUs to start at most; `maxcpus=0` and `nosmp` mean the boot CPU alone.
    pub fn maxcpus(&self) -> Option<usize> {
        if self.flag("nosmp") {
            return Some(1);
        }
        self.number("maxcpus").map(|n| usize::try_from(n).unwrap_or(usize::MAX).max(1))
    }

    /// `panic=`: 0 stays (so does no or a bad value), less resets at once, more after that many seconds.
    pub fn panic_action(&self) -> PanicAction {
        let text = self.text("panic").unwrap_or("0");
        match text.parse::<i32>() {
            Ok(seconds) if seconds > 0 => PanicAction::ResetAfter(seconds as u32),
            Ok(seconds) if seconds < 0 => PanicAction::ResetNow,
            _ => PanicAction::Halt,
        }
    }

    /// `wx=`.
    pub fn wx(&self) -> WxPolicy {
        if self.text("wx") == Some("log") { WxPolicy::Log } else { WxPolicy::Deny }
    }

    /// What init gets: the kernel's unknown words without a dot, in order, then what follows `--`.
    pub fn for_init(&self) -> impl Iterator<Item = ForInit<'a>> + use<'a> {
        let mut behind = false;
        Words { rest: self.line }.filter_map(move |word| {
            if behind {
                return Some(ForInit::Argument(unquote(word)));
            }
            if word == b"--" {
                behind = true;
                return None;
            }
            let param = split(word);
            if param.key.contains(&b'.') || KNOWN.iter().any(|name| param.is(name)) {
                return None;
            }
            Some(match param.value {
                Some(value) => ForInit::Environment(param.key, value),
                None => ForInit::Argument(param.key),
            })
        })
    }
}

fn parse_number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let number = match hex {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse::<u64>().ok()?,
    };
    number.checked_mul(1 << shift)
}

/// The words of a line, with their quotes.
#[derive(Clone, Debug)]
struct Words<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let blanks = self.rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.rest = &self.rest[blanks..];
        if self.rest.is_empty() {
            return None;
        }
        let mut quoted = false;
        let end = self.rest.iter().position(|byte| {
            quoted ^= *byte == b'"';
            byte.is_ascii_whitespace() && !quoted
        });
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        Some(word)
    }
}

/// Drops a quote at the start, and one at the end if there is one at the start.
fn unquote(word: &[u8]) -> &[u8] {
    let Some(inner) = word.strip_prefix(b"\"") else { return word };
    inner.strip_suffix(b"\"").unwrap_or(inner)
}

fn split(word: &[u8]) -> Param<'_> {
    // `"key=some value"` is the same as `key="some value"`.
    let word = unquote(word);
    match word.iter().position(|byte| *byte == b'=') {
        Some(at) => Param { key: &word[..at], value: Some(unquote(&word[at + 1..])) },
        None => Param { key: word, value: None },
    }
}
