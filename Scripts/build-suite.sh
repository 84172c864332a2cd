#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Compiles Guests/suite into .guest/suite, a static program, and builds an initial RAM disk with it,
# .guest/initramfs-suite.cpio. Natively and there, the kernels of class "real" run .guest/busybox.
# The compiler is $CC, else the Swift toolchain's clang, else cc; it needs a static libc (Debian:
# libc6-dev). What is up to date is not built again.
#
# usage: Scripts/build-suite.sh

set -eu
cd "$(dirname "$0")/.."
guest=.guest
source=Guests/suite/suite.c
mkdir -p "$guest"

newer() { [ -s "$1" ] && [ -z "$(find "$2" -newer "$1")" ]; }

if ! newer "$guest/suite" "$source"; then
  for compiler in ${CC:-} clang cc; do
    command -v "$compiler" >/dev/null 2>&1 || continue
    if "$compiler" -O2 -static -Wall -o "$guest/suite.new" "$source" -lm 2>"$guest/suite.log"; then
      mv "$guest/suite.new" "$guest/suite"
      built=yes
      break
    fi
  done
  if [ -z "${built:-}" ]; then
    [ ! -s "$guest/suite.log" ] || tail -n 3 "$guest/suite.log" >&2
    echo "build-suite: no compiler makes a static program here: install libc6-dev and clang or" \
      "gcc, or name the compiler in CC" >&2
    exit 1
  fi
  rm -f "$guest/suite.log"
fi

if [ ! -s "$guest/busybox" ]; then
  echo "build-suite: $guest/busybox is missing: run Scripts/fetch-guest.sh" >&2
  exit 1
fi
disk=$guest/initramfs-suite.cpio
if ! newer "$disk" "$guest/suite" || ! newer "$disk" "$guest/busybox" ||
  ! newer "$disk" Scripts/init-suite || ! newer "$disk" Scripts/make-initramfs.sh; then
  Scripts/make-initramfs.sh "$guest/busybox" Scripts/init-suite "$disk" "$guest/suite"
fi
