# SPDX-License-Identifier: Apache-2.0

SWIFT ?= swift
RELEASE = -c release
MARTLET = .build/release/martlet
SWIFT_FILES = Package.swift Sources Tests Benchmarks
# The parts of scripts are looked at through those that take them in (shellcheck -x).
SCRIPT_PARTS = Scripts/bench-lib.sh Scripts/bench-disk.sh Scripts/qemu-matrix-lib.sh Scripts/qemu-matrix-cases.sh
SHELL_SCRIPTS = .ci/run $(filter-out $(SCRIPT_PARTS), $(wildcard Scripts/*.sh Scripts/init-* \
  Guests/*.sh Benchmarks/programs/*.sh))
# Arguments for the program: make run ARGS="--cpus 2", make bench ARGS="--quick", make soak ARGS=60
ARGS ?=
# Checks shell scripts; empty where it cannot be installed.
SHELLCHECK ?= shellcheck

.PHONY: all build install man docs run guest guests test soak fuzz fuzz-entries fuzz-inputs golden profile-boot conformance qemu-matrix debian-boots bench bench-qemu check sanitize sanitize-threads format clean

all: build

# The release program, and the library that "martlet kvm" preloads.
build:
	$(SWIFT) build $(RELEASE) --product martlet
	$(SWIFT) build $(RELEASE) --product martlet-kvm

# Manual pages in .build/man, made of the program's help by swift-argument-parser's plugin.
MAN = .build/man
MANUALS = .build/plugins/GenerateManual/outputs/martlet
MAN_DATE = $(shell git log -1 --format=%cs 2>/dev/null || date +%F)

man: build
	$(SWIFT) package generate-manual --multi-page --date $(MAN_DATE)
	Scripts/man-pages.sh $(MARTLET) $(MANUALS) $(MAN)

# The program, the preload library, manual pages and shell completions: make install PREFIX=~/.local
PREFIX ?= /usr/local
SHARE = $(DESTDIR)$(PREFIX)/share

install: man
	install -D -m 755 $(MARTLET) $(DESTDIR)$(PREFIX)/bin/martlet
	install -D -m 755 .build/release/libmartlet-kvm.so $(DESTDIR)$(PREFIX)/lib/martlet/libmartlet-kvm.so
	install -d $(SHARE)/man/man1 $(SHARE)/bash-completion/completions \
	  $(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d
	install -m 644 $(MAN)/*.1 $(SHARE)/man/man1
	$(MARTLET) --generate-completion-script bash >$(SHARE)/bash-completion/completions/martlet
	$(MARTLET) --generate-completion-script zsh >$(SHARE)/zsh/site-functions/_martlet
	$(MARTLET) --generate-completion-script fish >$(SHARE)/fish/vendor_completions.d/martlet.fish

# Debian's cloud kernel with a shell on this terminal.
run: build .guest/vmlinuz-cloud-amd64 .guest/initramfs-shell.cpio
	$(MARTLET) run --kernel .guest/vmlinuz-cloud-amd64 --initrd .guest/initramfs-shell.cpio \
	  --append "quiet" $(ARGS)

# Kernels and initial RAM disks for guests.
guest:
	Scripts/fetch-guest.sh

.guest/vmlinuz-cloud-amd64:
	Scripts/fetch-guest.sh --cloud

.guest/initramfs-shell.cpio: .guest/vmlinuz-cloud-amd64 Scripts/init-shell Scripts/make-initramfs.sh
	Scripts/fetch-guest.sh --cloud

# One release build for tests and program. Boot tests need guests: where they cannot be fetched,
# those tests fail and say so, and all others run. What is skipped is summed up at the end.
test: export MARTLET_SKIPS = $(CURDIR)/.build/skips.txt
test: export MARTLET_KEEP_SKIPS = yes
test:
	Scripts/needs.sh
	-Scripts/fetch-guest.sh
	$(SWIFT) build $(RELEASE) --build-tests
	: >$(MARTLET_SKIPS)
	Scripts/qemu-matrix.sh --quick --if-installed; matrix=$$?; \
	Scripts/test.sh $(SWIFT) test $(RELEASE) --skip-build --disable-xctest && exit $$matrix

# Random instructions and blocks on host, interpreter and translator, with fresh seeds, for ARGS
# minutes, else 10; then hostile guests for as long.
soak:
	$(SWIFT) build $(RELEASE) --product martlet-oracle
	$(SWIFT) build $(RELEASE) --product martlet-survive
	.build/release/martlet-oracle soak $(ARGS)
	.build/release/martlet-survive --minutes $(or $(ARGS),10)

# Random calls of the KVM API on several threads: for ARGS minutes, else 10. "make fuzz-entries" is random
# VMCSs and VMCBs into VM entry and VMRUN: ARGS entries for each of four, else 2,500,000.
fuzz: build
	$(SWIFT) build $(RELEASE) --product martlet-kvm-fuzz
	$(MARTLET) kvm -- .build/release/martlet-kvm-fuzz --verbose --holes --minutes $(or $(ARGS),10)

fuzz-entries: export MARTLET_ENTRIES = $(or $(ARGS),2500000)
fuzz-entries:
	$(SWIFT) build $(RELEASE) --build-tests
	$(SWIFT) test $(RELEASE) --skip-build --disable-xctest --filter EntryFuzzTests

# Inputs that libFuzzer makes, with AddressSanitizer, for what reads bytes of guests and files: each part
# for ARGS minutes, else 1. A corpus grows in .build-fuzz; a failure's input is left there, too.
FUZZED = decoder kernels payloads decompressors devices chips images flash console sockets balloon
FUZZER = $(RELEASE) --scratch-path .build-fuzz -Xswiftc -sanitize=fuzzer,address -Xswiftc -assert-config \
  -Xswiftc Debug

fuzz-inputs: export MARTLET_FUZZ = yes
fuzz-inputs: export SWIFT_BACKTRACE = enable=no
fuzz-inputs:
	$(SWIFT) build $(FUZZER) --product martlet-fuzz
	status=0; for part in $(FUZZED); do \
	  echo "== $$part"; corpus=.build-fuzz/inputs/$$part; mkdir -p $$corpus; \
	  MARTLET_FUZZ_PART=$$part MARTLET_FUZZ_SEEDS=$$corpus .build-fuzz/release/martlet-fuzz \
	    -max_total_time=$$(($(or $(filter-out 0,$(ARGS)),1) * 60)) -max_len=2048 -timeout=30 -print_final_stats=1 -verbosity=0 \
	    -artifact_prefix=.build-fuzz/inputs/$$part- $$corpus || status=1; \
	done; exit $$status

# The kernel's KVM selftests on the software KVM: all, or those that ARGS names.
conformance: build
	Scripts/conformance.sh $(ARGS)

# Debian's QEMU, unmodified, on the software KVM: machines, disks, networks, firmware, snapshots,
# migration, a debugger. ARGS=--quick for a few of them.
qemu-matrix: build
	Scripts/qemu-matrix.sh $(ARGS)

# A small Debian image (made where it is not there), booted directly, by SeaBIOS and by UEFI, to its login
# with a network. ARGS=--qemu compares with QEMU.
debian-boots: build
	Scripts/debian-boots.sh $(ARGS)

# The built-in guest, assembled into Swift source.
guests:
	Guests/embed.sh Sources/VMM/BuiltinGuest/BuiltInGuestImage.swift

# What tests compare with: counts of host instructions per guest instruction, and the tables of
# handlers, made from the opcode table.
golden:
	$(SWIFT) build $(RELEASE) --build-tests
	MARTLET_GOLDEN=write $(SWIFT) test $(RELEASE) --skip-build --disable-xctest \
	  --filter "GoldenCountTests|HandlerTableTests|theDocumentIsWhatTheTestsDo"

# The libraries' public interface as a DocC archive, in .build/documentation.
docs: build
	Scripts/documentation.sh

# What a boot spends its time on; needs perf.
profile-boot: build .guest/vmlinuz-cloud-amd64
	Scripts/profile-boot.sh $(ARGS)

bench: build
	$(SWIFT) build $(RELEASE) --product martlet-bench
	Scripts/bench.sh $(ARGS)

# The guest suite under QEMU: on martlet's KVM, and on QEMU's own TCG.
bench-qemu: build
	Scripts/bench.sh --sections qemu $(ARGS)

# Scripts, comment width, formatting, arithmetic on what a guest chooses, and a build in which warnings
# are errors; the interface's documentation.
check:
	Scripts/needs.sh $(if $(SHELLCHECK),--check)
	$(if $(SHELLCHECK),$(SHELLCHECK) -x -S warning $(SHELL_SCRIPTS))
	Scripts/lint-width.sh
	Scripts/lint-traps.sh
	$(SWIFT) format lint --strict --recursive $(SWIFT_FILES)
	$(SWIFT) build --build-tests --scratch-path .build-check -Xswiftc -warnings-as-errors
	Scripts/documentation.sh .build-check/documentation .build-check/debug

# Tests with AddressSanitizer, in a debug build of its own: one process for each suite, all of them even
# where one fails. Faults are left to the program, which handles those of guest accesses itself.
SANITIZED = X86DecoderTests X86CPUTests DevicesTests InterruptChipsTests LinuxBootTests VMMTests KVMTests
SANITIZER = --sanitize address --scratch-path .build-asan

sanitize:
	$(SWIFT) build --build-tests $(SANITIZER)
	export ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigfpe=0:handle_sigill=0:handle_sigbus=0:allow_user_segv_handler=1; \
	status=0; for suite in $(SANITIZED); do \
	  $(SWIFT) test --skip-build $(SANITIZER) --disable-xctest --filter $$suite || status=1; \
	done; exit $$status

# Tests with ThreadSanitizer, in a debug build of its own: what threads share beside guest memory. A
# report makes the run fail.
THREADED = X86CPUTests.ShootdownTests HostTests.DescriptorTableTests
THREAD_SANITIZER = --sanitize thread --scratch-path .build-tsan

sanitize-threads: export MARTLET_TSAN = yes
sanitize-threads:
	$(SWIFT) build --build-tests $(THREAD_SANITIZER)
	export TSAN_OPTIONS="suppressions=$(CURDIR)/Tests/ThreadSanitizer/suppressions.txt print_suppressions=0"; \
	status=0; for suite in $(THREADED); do \
	  $(SWIFT) test --skip-build $(THREAD_SANITIZER) --disable-xctest --filter $$suite || status=1; \
	done; exit $$status

format:
	$(SWIFT) format --in-place --recursive $(SWIFT_FILES)

clean:
	rm -rf .build .build-check .build-asan .build-tsan .build-fuzz
