#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Makes a disk that a BIOS boots: GRUB in front of a partition with an ext4 file system, which has a
# kernel and an initial RAM disk. Without root. Needs grub-common, grub-pc-bin and e2fsprogs.
#
# usage: Scripts/make-boot-disk.sh OUTPUT KERNEL INITRD [COMMAND-LINE]

set -eu
PATH=$PATH:/usr/sbin:/sbin
output=$1 kernel=$2 initrd=$3 append=${4-}
modules=/usr/lib/grub/i386-pc
for file in grub-mkimage mkfs.ext4; do
  command -v "$file" >/dev/null || {
    echo "make-boot-disk: $file is missing: apt-get install grub-common e2fsprogs" >&2
    exit 1
  }
done
[ -e $modules/boot.img ] || {
  echo "make-boot-disk: $modules is missing: apt-get install grub-pc-bin" >&2
  exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

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

# One partition of Linux, active, with its first sector and its size.
little() {
  printf '%b' "$(printf '\\0%03o\\0%03o\\0%03o\\0%03o' $(($1 & 255)) $(($1 >> 8 & 255)) \
    $(($1 >> 16 & 255)) $(($1 >> 24 & 255)))"
}
{
  printf '\200\376\377\377\203\376\377\377'
  little $start
  little $((size * 2048))
} | dd of="$output" bs=1 seek=446 conv=notrunc 2>/dev/null
printf '\125\252' | dd of="$output" bs=1 seek=510 conv=notrunc 2>/dev/null
