//! m4: programs of every kind start as Linux starts them, and malformed ones are refused.
//!
//! Its negative control puts a sound program into the corpus of malformed ones: that it runs must be noticed.

use super::programs::{PROGRAM_LIMIT, checked, on_each};
use crate::cpio::Entry;
use crate::gate::{Case, Gate, Options};

/// The gate.
pub const GATE: Gate = Gate {
    name: "m4",
    title: "static, static-PIE and dynamic programs, scripts, their stacks; 40 malformed ELF files refused",
    cases,
};

fn cases(o: &Options) -> Vec<Case> {
    let mut cases = on_each(&o.smp, &["exec"], |_, _| Ok(()));
    cases.push(checked(4, &["exec"]));
    cases.push(Case::new("the corpus of elf-image", |c| {
        let corpus = elf_image::corpus::cases();
        let names: Vec<_> = corpus.iter().map(|x| format!("elf-corpus/{}.{}", x.name, x.verdict.label())).collect();
        let mut entries = vec![Entry::Dir("elf-corpus", 0o755)];
        entries.extend(names.iter().zip(&corpus).map(|(name, x)| Entry::File(name, 0o755, &x.bytes)));
        let mut config = c.config(2);
        config.initrd = Some(c.overlay(&entries)?);
        let mut sh = c.boot(&config)?;
        sh.program("exec corpus_directory", PROGRAM_LIMIT)?;
        sh.poweroff()
    }));
    cases.push(
        Case::new("control: a sound program among the malformed", |c| {
            let hello = std::fs::read(c.options.paths.build.join("tests/hello"))?;
            let mut config = c.config(1);
            config.initrd =
                Some(c.overlay(&[Entry::Dir("elf-corpus", 0o755), Entry::File("elf-corpus/sound", 0o755, &hello)])?);
            let mut sh = c.boot(&config)?;
            sh.program("exec corpus_directory", PROGRAM_LIMIT)?;
            sh.poweroff()
        })
        .control_anywhere("exec.corpus_directory"),
    );
    cases
}
