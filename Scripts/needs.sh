#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Checks for the programs that the tests run and lists the Debian packages that are missing. --install
# installs them (as root). --optional adds QEMU, passt, iasl, GRUB, SeaBIOS and OVMF, without which `make test`
# skips parts; --check adds what `make check` runs.
#
# usage: Scripts/needs.sh [--optional] [--check] [--install]

set -eu

install='' optional='' check=''
for option in "$@"; do
  case $option in
    --install) install=yes ;;
    --optional) optional=yes ;;
    --check) check=yes ;;
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
for library in /usr/lib/*/libseccomp.so.2 /usr/lib*/libseccomp.so.2 /lib*/libseccomp.so.2 ''; do
  [ -e "$library" ] && break
done
[ -n "$library" ] || missing="$missing libseccomp2"
need mkfs.ext4 e2fsprogs
if [ -n "$optional" ]; then
  need iasl acpica-tools
  need passt passt
  need qemu-system-x86_64 qemu-system-x86
  need qemu-img qemu-utils
  need grub-mkimage grub-common
  [ -e /usr/lib/grub/i386-pc/boot.img ] || missing="$missing grub-pc-bin"
  [ -e /usr/share/seabios/bios-256k.bin ] || missing="$missing seabios"
  [ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || missing="$missing ovmf"
  [ -e /usr/lib/grub/x86_64-efi/moddep.lst ] || missing="$missing grub-efi-amd64-bin"
  need mkfs.vfat dosfstools
  need mcopy mtools
fi
[ -z "$check" ] || need shellcheck shellcheck

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
