//! Builds device trees for tests.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod archive;

use std::collections::HashMap;

/// A blob under construction: call `begin`, `prop` and `end` in tree order.
#[derive(Default)]
pub struct Tree {
    structure: Vec<u8>,
    strings: Vec<u8>,
    offsets: HashMap<String, u32>,
    reservations: Vec<(u64, u64)>,
}

impl Tree {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn word(&mut self, word: u32) -> &mut Self {
        self.structure.extend(word.to_be_bytes());
        self
    }

    fn pad(&mut self) {
        while !self.structure.len().is_multiple_of(4) {
            self.structure.push(0);
        }
    }

    pub fn reserve(&mut self, base: u64, size: u64) -> &mut Self {
        self.reservations.push((base, size));
        self
    }

    pub fn begin(&mut self, name: &str) -> &mut Self {
        self.word(1);
        self.structure.extend(name.as_bytes());
        self.structure.push(0);
        self.pad();
        self
    }

    pub fn end(&mut self) -> &mut Self {
        self.word(2)
    }

    pub fn prop(&mut self, name: &str, value: &[u8]) -> &mut Self {
        let next = self.strings.len() as u32;
        let offset = *self.offsets.entry(name.into()).or_insert(next);
        if offset == next {
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
        }
        self.word(3).word(value.len() as u32).word(offset);
        self.structure.extend(value);
        self.pad();
        self
    }

    pub fn cells(&mut self, name: &str, cells: &[u32]) -> &mut Self {
        let value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.prop(name, &value)
    }

    /// Pairs of two cells each.
    pub fn wide(&mut self, name: &str, numbers: &[u64]) -> &mut Self {
        let value: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
        self.prop(name, &value)
    }

    pub fn text(&mut self, name: &str, text: &str) -> &mut Self {
        self.prop(name, format!("{text}\0").as_bytes())
    }

    pub fn finish(&self) -> Vec<u8> {
        let mut structure = self.structure.clone();
        structure.extend(9_u32.to_be_bytes());
        let reservations_len = (self.reservations.len() + 1) * 16;
        let structure_at = 40 + reservations_len;
        let strings_at = structure_at + structure.len();
        let total = strings_at + self.strings.len();
        let header = [0xd00d_feed, total, structure_at, strings_at, 40, 17, 16, 0, self.strings.len(), structure.len()];
        let mut blob: Vec<u8> = header.iter().flat_map(|field| (*field as u32).to_be_bytes()).collect();
        for (base, size) in self.reservations.iter().chain(&[(0, 0)]) {
            blob.extend(base.to_be_bytes());
            blob.extend(size.to_be_bytes());
        }
        blob.extend(structure);
        blob.extend(&self.strings);
        blob
    }
}

/// What a tree like QEMU's `virt` may differ in.
#[derive(Clone, Copy)]
pub struct Virt {
    pub gic: u32,
    pub cpus: u32,
    pub bus: bool,
}

/// A tree in the shape of QEMU's `virt` machine.
pub fn virt(options: Virt) -> Tree {
    let mut t = Tree::new();
    t.reserve(0x4000_0000, 0x1000).begin("");
    t.cells("interrupt-parent", &[1]).cells("#address-cells", &[2]).cells("#size-cells", &[2]);
    t.begin("psci").text("compatible", "arm,psci-1.0\0arm,psci-0.2\0arm,psci").text("method", "hvc").end();
    t.begin("memory@40000000").text("device_type", "memory").wide("reg", &[0x4000_0000, 0x2000_0000]).end();
    if options.bus {
        t.begin("soc").text("compatible", "simple-bus").cells("#address-cells", &[1]).cells("#size-cells", &[1]);
        t.cells("ranges", &[0, 0, 0x0900_0000, 0x10_0000]);
        t.begin("pl011@0").text("compatible", "arm,pl011\0arm,primecell").cells("reg", &[0, 0x1000]);
        t.cells("interrupts", &[0, 1, 4]).end().end();
    } else {
        t.begin("pl011@9000000").text("compatible", "arm,pl011\0arm,primecell");
        t.wide("reg", &[0x0900_0000, 0x1000]).cells("interrupts", &[0, 1, 4]).end();
    }
    for i in (0..4_u32).rev() {
        let base = 0x0a00_0000 + u64::from(i) * 0x200;
        t.begin(&format!("virtio_mmio@{base:x}")).text("compatible", "virtio,mmio").wide("reg", &[base, 0x200]);
        t.cells("interrupts", &[0, 16 + i, 1]).end();
    }
    t.begin("intc@8000000").cells("phandle", &[1]).cells("#interrupt-cells", &[3]).prop("interrupt-controller", &[]);
    t.cells("#address-cells", &[2]).cells("#size-cells", &[2]).prop("ranges", &[]);
    if options.gic == 3 {
        t.text("compatible", "arm,gic-v3").cells("#redistributor-regions", &[1]);
        t.wide("reg", &[0x0800_0000, 0x1_0000, 0x080a_0000, 0xf6_0000]);
        t.begin("its@8080000").text("compatible", "arm,gic-v3-its").wide("reg", &[0x0808_0000, 0x2_0000]).end();
    } else {
        t.text("compatible", "arm,cortex-a15-gic").wide("reg", &[0x0800_0000, 0x1_0000, 0x0801_0000, 0x1_0000]);
        t.begin("v2m@8020000").text("compatible", "arm,gic-v2m-frame").wide("reg", &[0x0802_0000, 0x1000]).end();
    }
    t.end();
    t.begin("cpus").cells("#address-cells", &[1]).cells("#size-cells", &[0]);
    for cpu in 0..options.cpus {
        t.begin(&format!("cpu@{cpu:x}")).text("device_type", "cpu").text("enable-method", "psci");
        t.cells("reg", &[cpu]).end();
    }
    t.end();
    t.begin("timer").text("compatible", "arm,armv8-timer");
    t.cells("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]).end();
    t.begin("pl031@9010000").text("compatible", "arm,pl031\0arm,primecell").wide("reg", &[0x0901_0000, 0x1000]);
    t.cells("interrupts", &[0, 2, 4]).end();
    t.begin("aliases").text("serial0", if options.bus { "/soc/pl011@0" } else { "/pl011@9000000" }).end();
    t.begin("reserved-memory").cells("#address-cells", &[2]).cells("#size-cells", &[2]).prop("ranges", &[]);
    t.begin("fw@50000000").wide("reg", &[0x5000_0000, 0x1_0000]).prop("no-map", &[]).end().end();
    t.begin("chosen").text("stdout-path", "serial0:115200n8").text("bootargs", "console=ttyAMA0 quiet");
    t.wide("kaslr-seed", &[0x1234_5678_9abc_def0]).prop("rng-seed", &[7; 32]);
    t.cells("linux,initrd-start", &[0x4800_0000]).cells("linux,initrd-end", &[0x4810_0000]).end();
    t.end();
    t
}
