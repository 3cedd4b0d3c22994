# The front door. `make run` gives a machine with a shell, `make test` checks everything; `make help` lists the rest.
# The work is done by cargo and by the scripts in scripts/; this file says what depends on what and names the knobs.

MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DEFAULT_GOAL := help
SHELL := bash

# --- knobs ------------------------------------------------------------------------------------------------------
# The emulated machine
SMP     ?= 4
MEM     ?= 512M
CPU     ?= neoverse-n1
GIC     ?= 3
EL      ?= 1
ACCEL   ?= auto
APPEND  ?=
QEMU    ?= qemu-system-aarch64
QEMUFLAGS ?=
# What it boots
PROFILE ?= release
INITRD  ?=
SSH_PORT ?= 2222
HTTP_PORT ?= 8080
HTTPS_PORT ?= 8443
DATA    ?= $(BUILD)/data.img
DATA_SIZE ?= 1G
# How it is built
BUILD   ?= $(CURDIR)/build
JOBS    ?= 2
# Gates at once, and whether a gate runs those before it in its series
GATE_JOBS ?= 2
ONLY    ?=
BENCHFLAGS ?=
FUZZ_SECONDS ?= 300

export SMP MEM CPU GIC EL ACCEL APPEND QEMU QEMUFLAGS PROFILE SSH_PORT HTTP_PORT HTTPS_PORT DATA DATA_SIZE JOBS GATE_JOBS ONLY
export BERTH_BUILD := $(BUILD)
# Where the pieces of a cross compiler are on a system other than Debian, see docs/building.md
export MUSL_INCLUDE MUSL_LIB KERNEL_HEADERS BERTH_SOURCES BERTH_CACHE BERTH_RUST_BIN

CARGO_ := scripts/cargo
boot_initrd := $(if $(INITRD),$(INITRD),$(BUILD)/initrd.cpio.gz)

.PHONY: help setup kernel kernels initrd userland harness run run-linux linux test host-test crash-soak fuzz lint fmt bench screenshot clean distclean FORCE

help:
	@sed -n 's/^#: \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

#: Berth: an operating system for Arm virtual machines.
#:
#:   make run          boot the machine: ssh -p 2222 root@localhost, https://localhost:8443, and its console here
#:                     (ctrl-a x leaves, `poweroff` ends it; its data is build/data.img)
#:   make test         everything that must hold: formatting, lints, host tests, all gates
#:   make NAME-test    one gate and those before it in its series: m1-test, s2-test … (ONLY=1: that one alone)
#:   make lint         rustfmt and clippy on every crate, shellcheck on every script
#:   make fmt          format all Rust code
#:   make host-test    the tests that need no machine
#:   make crash-soak   the crash matrix of the file system with a million cuts (minutes to an hour; SEED=n repeats)
#:   make fuzz         fuzzing of the ext4 driver, guided by coverage (FUZZ_SECONDS=300)
#:   make linux-test   disks to and fro between Berth and Linux, the file suites on Linux itself
#:   make bench        the same programs on Berth and on Debian's Linux, as ratios (BENCHFLAGS=…)
#:   make screenshot   the application in a browser (needs Debian's chromium): build/screenshot*.png
#:   make kernel       build/kernel.img, an arm64 Image (PROFILE=…)
#:   make initrd       build/initrd.cpio.gz, the initial root with busybox and the test programs
#:   make userland     build/userland, Berth's own programs (Rust, static musl)
#:   make linux        build/linux/vmlinuz, the Linux to compare with
#:   make run-linux    that Linux in the same machine with the same initial root
#:   make setup        install what is needed (runs by itself before everything else)
#:   make clean        forget what was built here (distclean: and what was fetched)
#:
#: Knobs, with their defaults:
#:   SMP=4             CPUs
#:   MEM=512M          memory
#:   CPU=neoverse-n1   CPU model when emulated (an accelerator uses the host's)
#:   GIC=3             interrupt controller, 2 or 3
#:   EL=1              exception level the kernel is entered at, 1 or 2
#:   ACCEL=auto        auto, kvm, hvf or tcg (auto: an Arm accelerator if this machine has one)
#:   APPEND=           the kernel's command line
#:   PROFILE=release   release or checked (lock order, atomic context, overflow checked at run time)
#:   INITRD=           another initial root
#:   SSH_PORT=2222, HTTP_PORT=8080, HTTPS_PORT=8443   this machine's ports for those of `make run`
#:   DATA=build/data.img, DATA_SIZE=1G   its data disk, made if it is not there
#:   QEMU=qemu-system-aarch64, QEMUFLAGS=   the emulator and more flags for it
#:   JOBS=2            compilers at once
#:   GATE_JOBS=2       gates at once
#:   BUILD=build       where results go

setup:
	@scripts/setup

# --- building ---------------------------------------------------------------------------------------------------
# cargo and the port recipes know what changed, so these always ask them.

kernel: setup
	@scripts/kernel-build $(PROFILE)

# Gates use both.
kernels: setup
	@scripts/kernel-build release
	@scripts/kernel-build checked

initrd: setup
	@scripts/initrd

userland: setup
	@scripts/userland-build

linux: setup
	@ports/build linux && ln -sfn ports/linux $(BUILD)/linux

harness: setup
	@$(CARGO_) build --release -q -p harness -j$(JOBS)

# --- using it ---------------------------------------------------------------------------------------------------

run: kernel $(if $(INITRD),,initrd)
	@HOSTING=1 scripts/run "$(BUILD)/kernel-$(PROFILE).img" "$(if $(INITRD),$(INITRD),$(BUILD)/initrd-host.cpio)"

run-linux: linux $(if $(INITRD),,initrd)
	@cat "$(boot_initrd)" "$(BUILD)/linux/modules.cpio.gz" >"$(BUILD)/initrd-run-linux.cpio.gz"
	@APPEND="console=ttyAMA0 mitigations=off kpti=off quiet $(APPEND)" scripts/run "$(BUILD)/linux/vmlinuz" "$(BUILD)/initrd-run-linux.cpio.gz"

# --- checking it ------------------------------------------------------------------------------------------------

fmt: setup
	@$(CARGO_) fmt --all
	@cd userland && ../scripts/cargo fmt --all

lint: setup
	@scripts/lint

host-test: setup
	@scripts/test host

# It compares with Linux, so that must be there.
linux-test: linux

%-test: kernels initrd harness FORCE
	@scripts/test gate $*

test: setup
	@scripts/test all

# A million cuts instead of ten thousand; SEED=n repeats a run.
crash-soak: setup
	CUTS=$${CUTS:-1000000} scripts/cargo test --release -p journal -p datafs -- --nocapture matrix

fuzz: setup
	@scripts/fuzz $(FUZZ_SECONDS)

bench: kernel initrd linux harness
	@scripts/cargo run --release -q -p harness -- bench $(BENCHFLAGS)

screenshot: kernel initrd harness
	@scripts/cargo run --release -q -p harness -- screenshot "$(BUILD)"

clean:
	rm -rf target $(BUILD)/kernel* $(BUILD)/initrd* $(BUILD)/root $(BUILD)/tests $(BUILD)/setup.stamp

distclean: clean
	rm -rf $(BUILD)
