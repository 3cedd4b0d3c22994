//! The `#!` line (execve(2), "Interpreter scripts").

/// The longest line that is looked at (Linux: BINPRM_BUF_SIZE).
pub const MAX_LINE: usize = 256;

/// The interpreter and its one optional argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script<'a> {
    /// Its path.
    pub interpreter: &'a [u8],
    /// What follows it, whole, without blanks at its ends.
    pub argument: Option<&'a [u8]>,
}

fn is_blank(c: u8) -> bool {
    c == b' ' || c == b'\t'
}

fn trim_start(s: &[u8]) -> &[u8] {
    &s[s.iter().take_while(|&&c| is_blank(c)).count()..]
}

fn trim(s: &[u8]) -> &[u8] {
    let s = trim_start(s);
    &s[..s.len() - s.iter().rev().take_while(|&&c| is_blank(c)).count()]
}

/// Reads the line at a file's start; `None` if the file does not begin with `#!` or names no interpreter, or if the
/// interpreter's name may have been cut off by [`MAX_LINE`].
pub fn parse(head: &[u8]) -> Option<Script<'_>> {
    let head = &head[..head.len().min(MAX_LINE)];
    let text = head.strip_prefix(b"#!")?;
    let end = text.iter().position(|&c| c == b'\n' || c == 0);
    let line = trim_start(&text[..end.unwrap_or(text.len())]);
    let split = line.iter().position(|&c| is_blank(c));
    if end.is_none() && split.is_none() && head.len() == MAX_LINE {
        return None;
    }
    let interpreter = &line[..split.unwrap_or(line.len())];
    if interpreter.is_empty() {
        return None;
    }
    let argument = split.map(|at| trim(&line[at..])).filter(|a| !a.is_empty());
    Some(Script { interpreter, argument })
}

#[cfg(test)]
mod tests {
    use super::{Script, parse};

    #[test]
    fn lines_read_as_on_linux() {
        type Parsed<'a> = Option<(&'a [u8], Option<&'a [u8]>)>;
        let cases: [(&[u8], Parsed<'_>); 7] = [
            (b"#!/bin/sh\necho", Some((b"/bin/sh", None))),
            (b"#! /bin/sh  -e x \n", Some((b"/bin/sh", Some(b"-e x")))),
            (b"#!/bin/sh", Some((b"/bin/sh", None))),
            (b"#!\n", None),
            (b"#!  \t \n", None),
            (b"#", None),
            (b"echo", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), want.map(|(interpreter, argument)| Script { interpreter, argument }), "{text:?}");
        }
        let mut long = [b'a'; 300];
        long[..2].copy_from_slice(b"#!");
        assert_eq!(parse(&long), None);
        long[255] = b' ';
        assert_eq!(parse(&long).map(|s| s.interpreter.len()), Some(253));
        long[..4].copy_from_slice(b"#!b ");
        assert_eq!(parse(&long).and_then(|s| s.argument).map(<[u8]>::len), Some(251));
    }
}
