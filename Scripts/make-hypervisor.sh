#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Writes an initial RAM disk for a guest that is a hypervisor: Linux's KVM, martlet with its
# libraries, and a kernel with an initial RAM disk for the inner machine. See init-hypervisor.
#
# usage: Scripts/make-hypervisor.sh MARTLET [OUTPUT]     OUTPUT is .guest/initramfs-hypervisor.cpio

set -eu
martlet=$1
cd "$(dirname "$0")/.."
output=${2:-.guest/initramfs-hypervisor.cpio}
for file in busybox vmlinuz-cloud-amd64 initramfs-marker.cpio modules/kvm/kvm.ko; do
  [ -s ".guest/$file" ] || {
    echo "make-hypervisor: .guest/$file is missing: run Scripts/fetch-guest.sh --cloud" >&2
    exit 1
  }
done
libraries=$(ldd "$martlet" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/[^ ]*ld-linux[^ ]*\) .*/\1/p')
# shellcheck disable=SC2086
Scripts/make-initramfs.sh .guest/busybox Scripts/init-hypervisor "$output" \
  "$martlet" $libraries .guest/vmlinuz-cloud-amd64 .guest/initramfs-marker.cpio \
  .guest/modules/kvm/*.ko
