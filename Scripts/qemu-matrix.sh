#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Debian's QEMU, unmodified, on the software KVM: boots of Debian's kernels on QEMU's machines, disk
# and network, firmware, snapshots, migration, a debugger. Prints a table; the status is 0 if every
# row passed.
#
# usage: Scripts/qemu-matrix.sh [OPTION...]
#
#   --quick            a few rows that take less than a minute together
#   --only REGEX       rows whose name matches
#   --repeat N         each row so often
#   --known            also the rows that fail on the kernel's KVM for QEMU's own reasons
#   --translator off   options for "martlet kvm", as are --pcpus N, --vendor V and --stats
#   --kernel           on the kernel's /dev/kvm instead, which may be slow: waits are 20 times longer
#   --if-installed     without QEMU say "skipped" and pass
#   --install          install what is missing by apt-get (as root) first
#
# Environment: MARTLET names the program (default: the release build's), QEMU the emulator.
# Consoles of failed rows are kept in .build/qemu-matrix.

set -uo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.." || exit 2
. Scripts/qemu-matrix-lib.sh
. Scripts/qemu-matrix-cases.sh

quick='' only='' all_known='' install='' optional='' patience=1 repeat=1
qemu=${QEMU:-qemu-system-x86_64}
launcher=("${MARTLET:-.build/release/martlet}" kvm) options=()
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=yes ;;
    --known) all_known=yes ;;
    --kernel) launcher=(env) patience=20 ;;
    --stats) options+=("$1") ;;
    --translator | --pcpus | --vendor)
      [ $# -ge 2 ] || fail "$1 needs a value"
      options+=("$1" "$2")
      shift
      ;;
    --install) install=yes ;;
    --if-installed) optional=yes ;;
    --only)
      [ $# -ge 2 ] || fail "--only needs a value"
      only=$2
      shift
      ;;
    --repeat)
      [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--repeat needs a number"
      repeat=$2
      shift
      ;;
    --help | -h)
      sed -n '4,/^set /s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) fail "unknown option $1; --help lists them" ;;
  esac
  shift
done

[ "${launcher[0]}" = env ] || launcher+=("${options[@]}" --)

# Programs and files with the packages that bring them.
missing() {
  command -v "$qemu" >/dev/null || echo qemu-system-x86
  command -v qemu-img >/dev/null || echo qemu-utils
  [ -n "$quick" ] && return
  command -v gdb >/dev/null || echo gdb
  [ -e /usr/share/ovmf/OVMF.fd ] || echo ovmf
  [ -d /usr/lib/grub/i386-pc ] || echo grub-pc-bin
  [ -d /usr/lib/grub/x86_64-efi ] || echo grub-efi-amd64-bin
  command -v grub-mkrescue >/dev/null || echo grub-common
  command -v mformat >/dev/null || echo mtools
  command -v xorriso >/dev/null || echo xorriso
  command -v virsh >/dev/null || echo libvirt-clients
  command -v libvirtd >/dev/null || echo libvirt-daemon
  [ -e /usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so ] ||
    echo libvirt-daemon-driver-qemu
}
packages=$(missing | tr '\n' ' ')
if [ -n "$packages" ] && [ -n "$install" ]; then
  # shellcheck disable=SC2086
  { apt-get update && apt-get install -y --no-install-recommends $packages; } >/dev/null
  packages=$(missing | tr '\n' ' ')
fi
if [ -n "$packages" ] && [ -n "$optional" ]; then
  echo "qemu-matrix: skipped; as root: apt-get install $packages"
  [ -z "${MARTLET_SKIPS:-}" ] || echo "qemu-matrix: QEMU is not installed" >>"$MARTLET_SKIPS"
  exit 0
fi
[ -z "$packages" ] || fail "missing; as root: apt-get install $packages(or --install)"
[ "${launcher[0]}" = env ] || [ -x "${launcher[0]}" ] || fail "${launcher[0]} is missing: make build"

Scripts/fetch-guest.sh || exit 2
[ -n "$quick" ] || Scripts/fetch-guest.sh --others || exit 2
work=$(mktemp -d)
trap 'finish_all; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
Scripts/make-initramfs.sh .guest/busybox Scripts/init-matrix "$work/matrix.cpio" .guest/modules/*.ko

row row result seconds "cpu s" note
if [ -n "$quick" ]; then quick_rows; else all_rows; fi
echo "$passed passed, $failed failed, $known not run for known reasons"
[ $failed -eq 0 ]
