#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Assembles builtin.S and writes it as Swift source: Guests/embed.sh OUTPUT.swift
set -eu
here=$(dirname "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
type=$(sed -n 's/.*static let powerOffSleepType: UInt16 = \([0-9]*\).*/\1/p' \
  "$here/../Sources/Devices/PowerManagement.swift")
clang --target=x86_64-unknown-none-elf -c -Wa,--defsym,SLEEP_TYPE="$type" \
  -o "$work/builtin.o" "$here/builtin.S"
ld.lld --oformat=binary --image-base=0x8000 -Ttext=0x8000 -e start -o "$work/builtin.bin" "$work/builtin.o"
{
  echo "// SPDX-License-Identifier: Apache-2.0"
  echo "//"
  echo "// Made from Guests/builtin.S by \`make guests\`; change that, not this."
  echo
  echo "/// The bytes of the built-in guest, for address 0x8000."
  echo "let builtInGuestImage: [UInt8] = ["
  od -An -v -tx1 -w16 "$work/builtin.bin" | sed 's/ \(..\)/ 0x\1,/g; s/^ /  /'
  echo "]"
} > "$1"
