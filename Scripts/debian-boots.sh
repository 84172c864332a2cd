#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Boots the small Debian image (Scripts/make-debian-image.sh) in every way: the kernel directly, by
# SeaBIOS with GRUB, by UEFI with GRUB. Each time root logs in on the serial port, the network has to
# have an address and a way out, and SIGTERM presses the power button; the file system is checked
# afterwards. Prints the seconds until the login prompt.
#
# usage: Scripts/debian-boots.sh [--qemu] [WAY...]      direct, bios, uefi; otherwise all
#        MARTLET_BOOT_LIMIT is the seconds that each step may take, otherwise 180
#        --qemu adds the direct boot with QEMU's TCG and with QEMU on "martlet kvm"

set -uo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
cd "$(dirname "$0")/.." || exit 1
martlet=.build/release/martlet
image=.guest/debian.qcow2
limit=${MARTLET_BOOT_LIMIT:-180}

fail() {
  echo "debian-boots: $*" >&2
  exit 1
}

for tool in qemu-img passt debugfs e2fsck; do
  command -v "$tool" >/dev/null || fail "$tool is missing: apt-get install qemu-utils passt e2fsprogs"
done
[ -x "$martlet" ] || fail "$martlet is missing: make build"
[ -s "$image" ] || Scripts/make-debian-image.sh "$image" || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

now() { date +%s%N; }

# Reads the machine's output until it has $1; false when the machine ends or time is over.
seen=
expect() {
  local chunk end=$((SECONDS + limit))
  while [[ $seen != *"$1"* ]]; do
    ((SECONDS < end)) || return 1
    IFS= read -r -d '' -t 0.1 -n 4096 chunk <&"$fromMachine"
    local status=$?
    seen+=$chunk
    if [ -z "$chunk" ] && [ "$status" = 1 ]; then return 1; fi
  done
  seen=${seen#*"$1"}
}

type() { printf '%s\n' "$1" >&"$toMachine"; }

# Boots the machine of a command line to its login prompt, in $seconds.
boot() {
  seen=
  local start
  start=$(now)
  # Nothing stands between that would keep the prompt in a buffer. A NUL of the guest ends a read.
  coproc machine { exec "$@" 2>"$work/errors"; }
  exec {fromMachine}<&"${machine[0]}" {toMachine}>&"${machine[1]}"
  # shellcheck disable=SC2154
  machineID=$machine_PID
  expect "martlet-debian login:" || return 1
  seconds=$(awk -v n="$(($(now) - start))" 'BEGIN { printf "%.1f", n / 1e9 }')
}

# Waits for the machine's end.
leave() {
  exec {toMachine}>&- {fromMachine}<&-
  kill -TERM "$machineID" 2>/dev/null
  wait "$machineID" 2>/dev/null
}

failures=0
problem() {
  echo "FAILED $1: $2"
  tail -n 3 "$work/errors"
  printf '%s\n' "${seen: -600}"
  failures=$((failures + 1))
}

# One way of Martlet's, with its options.
try() {
  local way=$1
  shift
  qemu-img convert -O raw "$image" "$work/disk.raw"
  if ! boot "$martlet" run --engine soft --memory 1G --net user --rng --disk "$work/disk.raw" "$@"; then
    problem "$way" "no login prompt"
  else
    type root
    expect '#' && type 'ip -4 -o addr show scope global | sed "s/.* inet /ADDRESS=/"; echo DONE=$?'
    if ! expect 'ADDRESS=10.0.2.' || ! expect 'DONE=0'; then
      problem "$way" "no address"
    fi
    kill -TERM "$machineID"
    if expect 'Power down'; then
      echo "ok $way: login after $seconds s"
    else
      problem "$way" "the power button did nothing"
    fi
  fi
  leave
  # The root file system, behind the other two partitions.
  dd if="$work/disk.raw" of="$work/root.ext4" bs=1M skip=18 conv=sparse status=none
  e2fsck -fn "$work/root.ext4" >"$work/fsck" 2>&1 || problem "$way" "the file system is damaged"
}

# QEMU's figure: a command before it, then options.
compare() {
  local name=$1
  shift
  if boot "$@" -m 1G -nographic -no-reboot -snapshot -kernel "$image.vmlinuz" \
    -initrd "$image.initrd" -append "console=ttyS0 root=LABEL=martlet-root" \
    -drive "file=$image,if=virtio" -nic user,model=virtio; then
    echo "ok $name: login after $seconds s"
    type root
    expect '#' && type poweroff
    expect 'Power down' || :
  else
    problem "$name" "no login prompt"
  fi
  leave
}

qemu=
[ "${1:-}" != --qemu ] || { qemu=yes && shift; }
[ $# -gt 0 ] || set -- direct bios uefi
for way in "$@"; do
  case $way in
    direct) try direct --kernel "$image.vmlinuz" --initrd "$image.initrd" --append "root=LABEL=martlet-root" ;;
    bios | uefi) try "$way" --firmware "$way" ;;
    *) fail "unknown way $way; give direct, bios or uefi" ;;
  esac
done
if [ -n "$qemu" ]; then
  compare "QEMU, TCG" qemu-system-x86_64 -accel tcg -cpu max
  compare "QEMU on martlet kvm" "$martlet" kvm -- qemu-system-x86_64 -accel kvm -cpu host
fi
[ "$failures" = 0 ]
