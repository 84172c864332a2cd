#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Checks for the programs that the tests run and names the Debian packages of those that are
# missing. With --install it installs them (as root). With --qemu QEMU is among them, without which
# `make test` says that its part is skipped.
#
# usage: Scripts/needs.sh [--qemu] [--install]

set -eu

install='' qemu=''
for option in "$@"; do
  case $option in
    --install) install=yes ;;
    --qemu) qemu=yes ;;
    *)
      echo "needs: unknown option $option" >&2
      exit 64
      ;;
  esac
done

# Where the tools of file systems are.
PATH=$PATH:/usr/sbin:/sbin
missing=
need() {
  command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need swift swift
need objdump binutils
need cc gcc
need xz xz-utils
need gzip gzip
need lz4 lz4
need zstd zstd
need mkfs.ext4 e2fsprogs
need iasl acpica-tools
need passt passt
ls /usr/lib/*/libseccomp.so.2 /usr/lib*/libseccomp.so.2 /lib*/libseccomp.so.2 2>/dev/null |
  grep -q . || missing="$missing libseccomp2"
if [ -n "$qemu" ]; then
  need qemu-system-x86_64 qemu-system-x86
  need qemu-img qemu-utils
fi

case " $missing " in
  *" swift "*)
    echo "needs: swift is missing: install Swift $(cat "$(dirname "$0")/../.swift-version")" \
      "from swift.org" >&2
    exit 1
    ;;
esac
[ -z "$missing" ] && exit 0
if [ -n "$install" ]; then
  apt-get update >/dev/null && apt-get install -y --no-install-recommends $missing >/dev/null
  exit
fi
echo "needs: programs are missing: apt-get install$missing" >&2
exit 1
