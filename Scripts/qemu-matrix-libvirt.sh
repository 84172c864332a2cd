#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A machine of libvirt's on the KVM under test: libvirtd is started under it, with the defaults that
# matter here: QEMU in a mount namespace and a system call filter of its own. A guest that counts is
# created, saved, restored and destroyed. Its console is WORK/guest.log. The daemon sees directories
# of its own in place of the system's, so that a libvirt in use is not disturbed; needs root.
#
# usage: unshare --mount Scripts/qemu-matrix-libvirt.sh WORK QEMU LAUNCHER...

set -uo pipefail
work=$1 qemu=$2
shift 2
daemon=

fail() {
  echo "$*" >&2
  [ -z "$daemon" ] || kill "$daemon"
  exit 1
}

for directory in /run /etc /var/lib /var/log /var/cache; do
  mkdir -p "$directory/libvirt" && mount -t tmpfs none "$directory/libvirt" || fail "no tmpfs"
done
# The users of Debian's libvirt-daemon-system, which the daemon looks up whatever its settings say.
if ! getent passwd libvirt-qemu >/dev/null; then
  { cat /etc/passwd && echo 'libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin'; } >"$work/passwd"
  { cat /etc/group && echo 'libvirt-qemu:x:64055:'; } >"$work/group"
  mount --bind "$work/passwd" /etc/passwd && mount --bind "$work/group" /etc/group || fail "no users"
fi
printf '%s\n' 'user = "root"' 'group = "root"' 'security_driver = "none"' \
  'stdio_handler = "file"' >/etc/libvirt/qemu.conf
cat >"$work/domain.xml" <<EOF
<domain type='kvm'>
  <name>matrix</name>
  <memory unit='MiB'>512</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>$PWD/.guest/vmlinuz-cloud-amd64</kernel>
    <initrd>$work/matrix.cpio</initrd>
    <cmdline>console=ttyS0 panic=-1 quiet matrix.task=count</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough'/>
  <devices>
    <emulator>$(command -v "$qemu")</emulator>
    <serial type='file'><source path='$work/guest.log' append='on'/></serial>
  </devices>
</domain>
EOF

# counts NUMBER: waits until the guest has come so far.
counts() {
  local try
  for ((try = 0; try < 600; try++)); do
    reached=$(tr -d '\r' <"$work/guest.log" | sed -n 's/^MATRIX \([0-9]*\) .*/\1/p' | tail -n 1)
    [ "${reached:-0}" -lt "$1" ] || return 0
    sleep 0.1
  done
  fail "the guest counted to ${reached:-0}, not $1"
}

call() { timeout 60 virsh -q -c qemu:///system "$@" >&2 || fail "virsh $1"; }

: >"$work/guest.log"
"$@" libvirtd &
daemon=$!
for ((try = 0; try < 300; try++)); do
  [ -S /run/libvirt/libvirt-sock ] && break
  sleep 0.1
done
call create "$work/domain.xml"
counts 10
call save matrix "$work/saved.img"
counts 10
call restore "$work/saved.img"
counts $((reached + 20))
call destroy matrix
kill "$daemon"
wait "$daemon"
