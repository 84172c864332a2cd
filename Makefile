# SPDX-License-Identifier: Apache-2.0

SWIFT ?= swift
RELEASE = -c release -Xswiftc -static-stdlib
MARTLET = .build/release/martlet
# Arguments for the program: make run ARGS="--cpus 2", make bench ARGS="--quick"
ARGS ?=

.PHONY: all build run guest guests test bench check format clean

all: build

# The release program, with the standard library inside.
build:
	$(SWIFT) build $(RELEASE) --product martlet

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

# Optimized, because the tests run millions of instructions; beside the program's build, because
# that links the standard library in another way. Boot tests need guests: without them they are
# skipped.
test:
	-Scripts/fetch-guest.sh
	$(SWIFT) build -c release --scratch-path .build-test --build-tests
	$(SWIFT) test -c release --scratch-path .build-test --skip-build

# The built-in guest, assembled into Swift source.
guests:
	Guests/embed.sh Sources/VMM/BuiltinGuest/BuiltInGuestImage.swift

bench: build
	$(SWIFT) build $(RELEASE) --product martlet-bench
	Scripts/bench.sh $(ARGS)

# Formatting, and a build in which warnings are errors.
check:
	$(SWIFT) format lint --strict --recursive Package.swift Sources Tests
	$(SWIFT) build --build-tests --scratch-path .build-check -Xswiftc -warnings-as-errors

format:
	$(SWIFT) format --in-place --recursive Package.swift Sources Tests

clean:
	rm -rf .build .build-check .build-test
