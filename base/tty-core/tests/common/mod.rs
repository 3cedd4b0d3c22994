//! Scripts of what device and program do to a terminal, and their transcript on the model.

#![allow(dead_code)]

use tty_core::{
    ControlFlags, InputFlags, LineDiscipline, LocalFlags, OutputFlags, ReadRequest, ReadStep, Ring, Termios,
};

/// One action.
#[derive(Clone, Debug)]
pub enum Step {
    /// The settings change.
    Set(Termios),
    /// The device sends.
    Type(Vec<u8>),
    /// The program writes.
    Write(Vec<u8>),
    /// The program reads, without blocking.
    Read(usize),
    /// The program asks `FIONREAD`.
    Inq,
}

/// A terminal that a script can run on.
pub trait Terminal {
    fn set(&mut self, termios: &Termios);
    fn type_in(&mut self, bytes: &[u8]);
    fn write(&mut self, bytes: &[u8]);
    /// `None` is `EAGAIN`.
    fn read(&mut self, len: usize) -> Option<Vec<u8>>;
    fn inq(&mut self) -> usize;
    /// What has come out of the terminal since the last call.
    fn screen(&mut self) -> Vec<u8>;
}

/// In quotes; runs of more than sixteen equal bytes as `{byte*count}`.
fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for run in bytes.chunk_by(|a, b| a == b) {
        let one = run[..1].escape_ascii();
        if run.len() > 16 {
            out = format!("{out}{{{one}*{}}}", run.len());
        } else {
            out.extend(run.escape_ascii().map(char::from));
        }
    }
    out + "\""
}

/// Runs a script; the transcript has `>"…"` for what the device got, `<"…"` for what was read, `#n` for `FIONREAD`.
pub fn run(terminal: &mut impl Terminal, script: &[Step]) -> String {
    let mut transcript = Vec::new();
    for step in script {
        match step {
            Step::Set(termios) => terminal.set(termios),
            Step::Type(bytes) => terminal.type_in(bytes),
            Step::Write(bytes) => terminal.write(bytes),
            Step::Read(len) => {
                let got = terminal.read(*len);
                transcript.push(got.map_or("<-".into(), |bytes| format!("<{}", quote(&bytes))));
            }
            Step::Inq => transcript.push(format!("#{}", terminal.inq())),
        }
        let screen = terminal.screen();
        if !screen.is_empty() {
            transcript.push(format!(">{}", quote(&screen)));
        }
    }
    transcript.join(" ")
}

/// The model as a terminal.
pub struct Model {
    pub tty: LineDiscipline,
    pub out: Ring,
}

impl Model {
    pub fn new() -> Self {
        Model { tty: LineDiscipline::new(Termios::pty()).unwrap(), out: Ring::new(65536).unwrap() }
    }
}

impl Terminal for Model {
    fn set(&mut self, termios: &Termios) {
        self.tty.set_termios(*termios, &mut self.out);
    }

    fn type_in(&mut self, bytes: &[u8]) {
        self.tty.input(bytes, &mut self.out);
    }

    fn write(&mut self, bytes: &[u8]) {
        self.tty.write(bytes, &mut self.out);
    }

    fn read(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut request = ReadRequest::new(&self.tty, len, 0);
        let mut all = Vec::new();
        // A small odd chunk, to see that chunks make no difference.
        let mut chunk = [0; 7];
        loop {
            match request.step(&mut self.tty, &mut chunk, 0) {
                ReadStep::Copied(n) => all.extend_from_slice(&chunk[..n]),
                ReadStep::Done => return Some(all),
                ReadStep::Wait { .. } => return if all.is_empty() { None } else { Some(all) },
            }
        }
    }

    fn inq(&mut self) -> usize {
        self.tty.inq()
    }

    fn screen(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; self.out.len()];
        self.out.pop(&mut bytes);
        bytes
    }
}

/// Default settings with flags switched on and off.
pub fn with(on: &[Flag], off: &[Flag]) -> Termios {
    let mut t = Termios::pty();
    for (flags, value) in [(on, true), (off, false)] {
        for flag in flags {
            match *flag {
                Flag::I(f) => t.iflag.set(f, value),
                Flag::O(f) => t.oflag.set(f, value),
                Flag::C(f) => t.cflag.set(f, value),
                Flag::L(f) => t.lflag.set(f, value),
            }
        }
    }
    t
}

/// A flag of any of the four words.
#[derive(Clone, Copy)]
pub enum Flag {
    I(InputFlags),
    O(OutputFlags),
    C(ControlFlags),
    L(LocalFlags),
}
