#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Says what a boot on the software engine spends its processor time on: parts of the program, and functions
# of the guest's kernel whose translations ran. The kernel's symbols are the guest's own, from a boot
# before the measured ones; `nokaslr` makes both have the same addresses.
#
# usage: Scripts/profile-boot.sh [KERNEL [RUNS]]     default: .guest/vmlinuz-cloud-amd64, 5
# Needs perf (Debian: linux-perf), and the release build and .guest (make build guest).

set -eu
cd "$(dirname "$0")/.."
kernel=${1:-.guest/vmlinuz-cloud-amd64}
runs=${2:-5}
martlet=${MARTLET:-$PWD/.build/release/martlet}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
command -v perf >/dev/null || {
  echo "profile-boot: perf is missing: apt-get install linux-perf" >&2
  exit 1
}

Scripts/make-initramfs.sh .guest/busybox Scripts/init-symbols "$work/symbols.cpio"
"$martlet" run --engine soft --kernel "$kernel" --initrd "$work/symbols.cpio" \
  --append "quiet nokaslr" </dev/null 2>/dev/null |
  tr -d '\r' | sed -n 's/^SYMBOL \([0-9a-f]*\) . \([^ \t]*\).*/\1 \2/p' | sort >"$work/symbols"
[ -s "$work/symbols" ] || {
  echo "profile-boot: the guest printed no symbols" >&2
  exit 1
}

run=0
while [ "$run" -lt "$runs" ]; do
  run=$((run + 1))
  perf record -q -F 4000 -o "$work/data" "$martlet" run --engine soft --perf-map \
    --kernel "$kernel" --initrd .guest/initramfs-marker.cpio --append "quiet nokaslr" \
    </dev/null >/dev/null 2>&1
  perf report -i "$work/data" --stdio --no-children --sort dso,sym -F sample,dso,sym 2>/dev/null |
    sed -n 's/^ *\([0-9][0-9]*\)  *\(.*[^ ]\)  *\[\([k.]\)\] \(.*[^ ]\) *$/\1\t\2\t\3\t\4/p' >>"$work/samples"
done

awk -F '\t' -v runs="$runs" -f Scripts/profile-boot.awk "$work/symbols" "$work/samples"
