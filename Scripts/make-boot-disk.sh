#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Makes a disk that a BIOS boots: GRUB in front of a partition with an ext4 file system, which has a
# kernel and an initial RAM disk. With --efi, one that UEFI boots and no BIOS: GRUB, kernel and initial
# RAM disk in an EFI system partition. Without root. Needs grub-common and either grub-pc-bin and
# e2fsprogs or grub-efi-amd64-bin, dosfstools and mtools.
#
# usage: Scripts/make-boot-disk.sh [--efi] OUTPUT KERNEL INITRD [COMMAND-LINE]

set -eu
PATH=$PATH:/usr/sbin:/sbin
efi=
[ "$1" != --efi ] || { efi=yes && shift; }
output=$1 kernel=$2 initrd=$3 append=${4-}
if [ -n "$efi" ]; then
  modules=/usr/lib/grub/x86_64-efi packages="grub-common grub-efi-amd64-bin dosfstools mtools"
  tools="grub-mkimage mkfs.vfat mcopy"
else
  modules=/usr/lib/grub/i386-pc packages="grub-common grub-pc-bin e2fsprogs"
  tools="grub-mkimage mkfs.ext4"
fi
for file in $tools $modules/moddep.lst; do
  command -v "$file" >/dev/null || [ -e "$file" ] || {
    echo "make-boot-disk: $file is missing: apt-get install $packages" >&2
    exit 1
  }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# One partition, active, of type $1, with its first sector $2 and its count $3; no code.
partition() {
  {
    printf '\200\376\377\377%b\376\377\377' "$1"
    little "$2"
    little "$3"
  } | dd of="$output" bs=1 seek=446 conv=notrunc 2>/dev/null
  printf '\125\252' | dd of="$output" bs=1 seek=510 conv=notrunc 2>/dev/null
}
little() {
  printf '%b' "$(printf '\\0%03o\\0%03o\\0%03o\\0%03o' $(($1 & 255)) $(($1 >> 8 & 255)) \
    $(($1 >> 16 & 255)) $(($1 >> 24 & 255)))"
}

# The partition begins at 1 MiB. What is before it has room for GRUB.
start=2048
mkdir -p "$work/tree/boot/grub"
cp "$kernel" "$work/tree/boot/vmlinuz"
cp "$initrd" "$work/tree/boot/initrd"
cat >"$work/tree/boot/grub/grub.cfg" <<END
echo GRUB starts Linux
linux /boot/vmlinuz console=ttyS0 $append
initrd /boot/initrd
boot
END
size=$(($(du -sm "$work/tree" | cut -f 1) + 24))
if [ -n "$efi" ]; then
  grub-mkimage -O x86_64-efi -o "$work/grub.efi" -p /boot/grub fat part_msdos linux normal \
    configfile echo
  truncate -s "${size}M" "$work/partition"
  mkfs.vfat "$work/partition" >/dev/null
  mmd -i "$work/partition" ::EFI ::EFI/BOOT
  mcopy -i "$work/partition" "$work/grub.efi" ::EFI/BOOT/BOOTX64.EFI
  mcopy -s -i "$work/partition" "$work/tree/boot" ::
  truncate -s "$((size + 1))M" "$output"
  dd if="$work/partition" of="$output" bs=1M seek=1 conv=notrunc,sparse 2>/dev/null
  partition '\357' $start $((size * 2048))
  exit 0
fi
truncate -s "${size}M" "$work/partition"
mkfs.ext4 -q -d "$work/tree" "$work/partition"

grub-mkimage -O i386-pc -o "$work/core.img" -p '(hd0,msdos1)/boot/grub' \
  biosdisk part_msdos ext2 linux normal configfile echo
truncate -s "$((size + 1))M" "$output"
# The boot sector, up to the partition table; then GRUB from the second sector on, where its first
# sector says that the rest is.
dd if=$modules/boot.img of="$output" bs=440 count=1 conv=notrunc 2>/dev/null
dd if="$work/core.img" of="$output" bs=512 seek=1 conv=notrunc 2>/dev/null
dd if="$work/partition" of="$output" bs=1M seek=1 conv=notrunc,sparse 2>/dev/null

partition '\203' $start $((size * 2048))
