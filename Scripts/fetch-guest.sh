#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fetches Debian's kernels and a static busybox as packages into .guest/, without installing
# anything, and builds initial RAM disks there:
#
#   .guest/vmlinuz-cloud-amd64      Debian's kernel for virtual machines
#   .guest/vmlinuz-amd64            Debian's generic kernel
#   .guest/busybox                  a static busybox
#   .guest/initramfs-shell.cpio     an interactive shell on the console
#   .guest/initramfs-marker.cpio    prints MARTLET-GUEST-READY cpus=N and powers off
#   .guest/initramfs-devices.cpio   tries disks, networks and other devices
#   .guest/modules                  the cloud kernel's virtio drivers, and in kvm/ its KVM
#   .guest/vsock                    sockets for the device tests' guest (Guests/vsock.c); needs a C compiler
#
# and with --others:
#
#   .guest/xen                      the Xen hypervisor
#   .guest/memtest-ia32, -x64       memtest86+
#   .guest/vmlinuz-686-pae          Debian's 32-bit kernel
#   .guest/initramfs-marker-i386.cpio, .guest/busybox-i386
#
# usage: Scripts/fetch-guest.sh [--cloud | --others]
#        --cloud leaves the generic kernel out, --others fetches those alone
# What is there already is not fetched again. Where apt has no package lists, they are fetched into
# .guest/apt, so that root is not needed.

set -eu
cd "$(dirname "$0")/.."
guest=$PWD/.guest
mkdir -p "$guest"

for tool in apt-get apt-cache dpkg-deb; do
  if ! command -v "$tool" >/dev/null 2>&1; then
    echo "fetch-guest: $tool is missing: put vmlinuz-cloud-amd64, vmlinuz-amd64 and busybox" \
      "(static) into $guest by hand, from Debian's linux-image-* and busybox-static packages;" \
      "\"martlet run\" without a kernel starts a built-in guest" >&2
    missing=yes
  fi
done

# Options that make apt use lists of our own, of architecture $1; empty while the system's lists serve.
lists=
own_lists() {
  apt=$guest/apt${1:+-$1}
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  lists="-o Dir::State::Lists=$apt/lists -o Dir::Cache=$apt/cache"
  [ -z "${1:-}" ] || lists="$lists -o APT::Architecture=$1 -o APT::Architectures=$1"
  lists="$lists -o APT::Sandbox::User=$(id -un)"
  apt-get $lists update >"$apt/log" 2>&1 || true
}

# The kernel package that the meta package $1 depends on.
kernel_package() {
  apt-cache $lists depends "$1" 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1
}

# Downloads a package and unpacks it into the directory $2.
unpack() {
  mkdir -p "$2"
  (cd "$2" && apt-get $lists download "$1" >download.log 2>&1) || {
    echo "fetch-guest: apt-get download $1 failed:" >&2
    tail -n 2 "$2/download.log" >&2
    echo "fetch-guest: is there a network? Old package lists are renewed by apt-get update" >&2
    exit 1
  }
  for package in "$2"/*.deb; do dpkg-deb -x "$package" "$2"; done
}

# Fetches the kernel that the meta package $1 depends on as $2, and its virtio drivers and KVM into
# $3.
kernel() {
  [ -s "$guest/$2" ] && { [ -z "${3:-}" ] ||
    { [ -s "$guest/$3/kvm/kvm.ko" ] && [ -e "$guest/$3/vsock.ko" ]; }; } && return
  [ -z "${missing:-}" ] || exit 1
  package=$(kernel_package "$1")
  if [ -z "$package" ] && [ -z "$lists" ]; then
    own_lists
    package=$(kernel_package "$1")
  fi
  if [ -z "$package" ]; then
    echo "fetch-guest: apt knows no $1, also after apt-get update: is there a network, and is" \
      "Debian's main archive among apt's sources?" >&2
    exit 1
  fi
  echo "fetch-guest: $package"
  work=$(mktemp -d)
  unpack "$package" "$work"
  cp "$work"/boot/vmlinuz-* "$guest/$2.new"
  mv "$guest/$2.new" "$guest/$2"
  if [ -n "${3:-}" ]; then
    mkdir -p "$guest/$3/kvm"
    find "$work" \( -name 'kvm*.ko' -o -name irqbypass.ko \) -exec cp {} "$guest/$3/kvm" \;
    find "$work" \( -name 'virtio*.ko' -o -name '*failover.ko' -o -name vsock.ko \
      -o -name 'vmw_vsock_virtio*.ko' \) -exec cp {} "$guest/$3" \;
  fi
  rm -r "$work"
}

# Builds Guests/vsock.c as $1. Without a compiler its test is skipped.
vsock_program() {
  [ ! -s "$guest/$1" ] || [ -n "$(find Guests/vsock.c -newer "$guest/$1")" ] || return 0
  for compiler in ${CC:-} clang cc; do
    command -v "$compiler" >/dev/null 2>&1 || continue
    "$compiler" -O2 -static -Wall -o "$guest/$1.new" Guests/vsock.c 2>"$guest/$1.log" || continue
    mv "$guest/$1.new" "$guest/$1"
    rm -f "$guest/$1.log"
    return 0
  done
  echo "fetch-guest: no compiler makes a static program here: install gcc and libc6-dev" >&2
}

# The package of the Xen hypervisor.
xen_package() {
  apt-cache $lists search --names-only '^xen-hypervisor-[0-9.]*-amd64$' 2>/dev/null |
    sed -n 's/ .*//p' | tail -n 1
}

# Guests that are not Linux.
other_guests() {
  [ ! -s "$guest/xen" ] || [ ! -s "$guest/memtest-x64" ] || return 0
  [ -z "${missing:-}" ] || exit 1
  [ -n "$(xen_package)" ] || own_lists
  echo "fetch-guest: $(xen_package), memtest86+"
  work=$(mktemp -d)
  unpack "$(xen_package)" "$work/xen"
  gzip -dc "$work"/xen/boot/xen-*.gz >"$guest/xen"
  unpack memtest86+ "$work/memtest"
  for kind in ia32 x64; do cp "$work/memtest/boot/memtest86+$kind.bin" "$guest/memtest-$kind"; done
  rm -r "$work"
}

# Fetches a static busybox as $1.
busybox() {
  [ ! -s "$guest/$1" ] || return 0
  [ -z "${missing:-}" ] || exit 1
  echo "fetch-guest: busybox-static as $1"
  work=$(mktemp -d)
  unpack busybox-static "$work"
  cp "$work"/*bin/busybox "$guest/$1" 2>/dev/null || cp "$work"/usr/bin/busybox "$guest/$1"
  chmod 755 "$guest/$1"
  rm -r "$work"
}

# A 32-bit program with shared libraries, and those.
dynamic_program() {
  [ ! -s "$guest/dynamic-i386/busybox32" ] || return 0
  echo "fetch-guest: busybox and libc6 of i386"
  work=$(mktemp -d)
  unpack busybox "$work/busybox"
  unpack libc6 "$work/libc6"
  mkdir -p "$guest/dynamic-i386"
  find "$work/libc6" \( -name ld-linux.so.2 -o -name libc.so.6 -o -name libresolv.so.2 \) \
    ! -path '*/i686/*' -exec cp -L {} "$guest/dynamic-i386" \;
  find "$work/busybox" -path '*bin/busybox' -exec cp {} "$guest/dynamic-i386/busybox32" \;
  rm -r "$work"
}

# Debian's 32-bit kernel and programs, from lists of its architecture.
guest_of_32_bits() {
  [ ! -s "$guest/vmlinuz-686-pae" ] || [ ! -s "$guest/busybox-i386" ] ||
    [ ! -s "$guest/dynamic-i386/busybox32" ] || return 0
  own_lists i386
  kernel linux-image-686-pae vmlinuz-686-pae
  busybox busybox-i386
  dynamic_program
}

if [ "${1:-}" = --others ]; then
  other_guests
  guest_of_32_bits
  Scripts/make-initramfs.sh "$guest/busybox-i386" Scripts/init-marker \
    "$guest/initramfs-marker-i386.cpio"
else
  kernel linux-image-cloud-amd64 vmlinuz-cloud-amd64 modules
  [ "${1:-}" = --cloud ] || kernel linux-image-amd64 vmlinuz-amd64
  busybox busybox
  vsock_program vsock
  programs=
  [ ! -s "$guest/vsock" ] || programs=$guest/vsock
  for kind in shell marker; do
    Scripts/make-initramfs.sh "$guest/busybox" "Scripts/init-$kind" "$guest/initramfs-$kind.cpio"
  done
  Scripts/make-initramfs.sh "$guest/busybox" Scripts/init-devices "$guest/initramfs-devices.cpio" \
    "$guest"/modules/*.ko ${programs:+"$programs"}
fi
