#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Writes an initial RAM disk (cpio, "newc" format) with busybox and an init script. The format is
# written here by hand, so that neither root (for the device node) nor cpio is needed.
#
# usage: Scripts/make-initramfs.sh BUSYBOX INIT OUTPUT [PROGRAM...]     PROGRAMs go into /bin

set -eu
busybox=$1 init=$2 output=$3
shift 3
inode=0

# One member: name, mode, size, major, minor. All other fields are 0.
header() {
  inode=$((inode + 1))
  printf '070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\0' \
    "$inode" "$2" 0 0 1 0 "$3" 0 0 "$4" "$5" "$((${#1} + 1))" 0 "$1"
  pad $((110 + ${#1} + 1))
}
# Fills up to a multiple of 4.
pad() {
  case $(($1 % 4)) in
    1) printf '\0\0\0' ;;
    2) printf '\0\0' ;;
    3) printf '\0' ;;
  esac
}
directory() { header "$1" $((0040755)) 0 0 0; }
device() { header "$1" $((0020600)) 0 "$2" "$3"; }
file() {
  size=$(wc -c <"$2")
  header "$1" $((0100755)) "$size" 0 0
  cat "$2"
  pad "$size"
}
link() {
  header "$1" $((0120777)) ${#2} 0 0
  printf '%s' "$2"
  pad ${#2}
}

{
  for name in bin dev proc sys tmp root; do directory "$name"; done
  device dev/console 5 1
  device dev/ttyS0 4 64
  device dev/null 1 3
  file bin/busybox "$busybox"
  link bin/sh busybox
  for program in "$@"; do file "bin/${program##*/}" "$program"; done
  file init "$init"
  header 'TRAILER!!!' 0 0 0 0
} >"$output.new"
mv "$output.new" "$output"
