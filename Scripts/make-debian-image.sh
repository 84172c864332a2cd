#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes a disk image with a small Debian, as its own disks are laid out: a GUID partition table with a
# BIOS boot partition and an EFI system partition, GRUB in both, and a root file system (ext4). It has
# a getty on the serial port, where root logs in without a password, and DHCP on every network card.
# Without root. Needs mmdebstrap, e2fsprogs, dosfstools, mtools, fdisk, grub-common, grub-pc-bin,
# grub-efi-amd64-bin and, for a user who is not root, fakeroot and uidmap; and qemu-utils for qcow2.
#
# usage: Scripts/make-debian-image.sh [OUTPUT]     .guest/debian.qcow2; .raw or .img for a raw one
#
#   MARTLET_DEBIAN_SUITE     the release, otherwise that of this machine
#   MARTLET_DEBIAN_SOURCES   a file with apt's sources, otherwise this machine's
#   MARTLET_DEBIAN_PACKAGES  packages to add, with commas between them
#
# Kernel and initial RAM disk are copied to OUTPUT.vmlinuz and OUTPUT.initrd, for a direct boot with
# --append "root=LABEL=martlet-root". The login prompt is "martlet-debian login:".

set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
cd "$(dirname "$0")/.."
output=${1:-.guest/debian.qcow2}

fail() {
  echo "make-debian-image: $*" >&2
  exit 1
}

missing=
need() { command -v "$1" >/dev/null || missing="$missing $2"; }
need mmdebstrap mmdebstrap
need mkfs.ext4 e2fsprogs
need mkfs.vfat dosfstools
need mcopy mtools
need sfdisk fdisk
need grub-mkimage grub-common
[ -e /usr/lib/grub/i386-pc/boot.img ] || missing="$missing grub-pc-bin"
[ -d /usr/lib/grub/x86_64-efi ] || missing="$missing grub-efi-amd64-bin"
asRoot=()
if [ "$(id -u)" != 0 ]; then
  need fakeroot fakeroot
  need newuidmap uidmap
  asRoot=(fakeroot)
fi
case $output in *.qcow2) need qemu-img qemu-utils ;; esac
[ -z "$missing" ] || fail "programs are missing: apt-get install$missing"

mkdir -p "$(dirname "$output")"
work=$(mktemp -d "$(dirname "$output")/debian-XXXXXX")
trap 'rm -rf "$work"' EXIT

# What the packages do not bring. Runs in the new root's place; $1 is the root.
cat >"$work/customize" <<'END'
#!/bin/sh
set -eu
root=$1
echo martlet-debian >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 martlet-debian\n' >"$root/etc/hosts"
printf 'LABEL=martlet-root / ext4 errors=remount-ro 0 1\n' >"$root/etc/fstab"
chroot "$root" passwd -q -d root
cat >"$root/etc/systemd/network/80-dhcp.network" <<NETWORK
[Match]
Type=ether
[Network]
DHCP=yes
NETWORK
chroot "$root" systemctl -q enable systemd-networkd systemd-resolved
# Generated anew at the first boot.
: >"$root/etc/machine-id"
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/locale/* "$root"/usr/share/man/* \
  "$root"/var/cache/apt/*.bin
END
chmod 755 "$work/customize"

packages=linux-image-cloud-amd64,systemd-sysv,systemd-resolved,udev,iproute2,iputils-ping,kmod
packages=$packages,e2fsprogs,dbus${MARTLET_DEBIAN_PACKAGES:+,$MARTLET_DEBIAN_PACKAGES}
sources=${MARTLET_DEBIAN_SOURCES:-}
suite=${MARTLET_DEBIAN_SUITE:-$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)}
if [ -z "$sources" ]; then
  for sources in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    [ ! -s "$sources" ] || break
  done
fi
echo "make-debian-image: packages of $suite"
mmdebstrap --variant=minbase --include="$packages" --customize-hook="$work/customize \"\$1\"" \
  --customize-hook="copy-out /boot $work" \
  "$suite" "$work/root.tar" "$sources" >"$work/log" 2>&1 || {
  tail -n 5 "$work/log" >&2
  fail "mmdebstrap failed"
}

echo "make-debian-image: file systems"
# Sectors of the partitions, as Debian's images have them: BIOS boot, EFI system, root.
sector=512 biosStart=2048 biosCount=2048 efiStart=4096 efiCount=32768 rootStart=36864
rootID=$(cat /proc/sys/kernel/random/uuid)
mkdir "$work/tree"
rootMegabytes=$(($(stat -c %s "$work/root.tar") * 5 / 4 / 1048576 + 256))
truncate -s "${rootMegabytes}M" "$work/root.ext4"

kernel=$(cd "$work/boot" && echo vmlinuz-*) initrd=$(cd "$work/boot" && echo initrd.img-*)
cat >"$work/grub.cfg" <<END
set timeout=0
menuentry 'Debian' {
  linux /boot/$kernel root=UUID=$rootID ro console=ttyS0
  initrd /boot/$initrd
}
END
cat >"$work/early.cfg" <<END
search.fs_uuid $rootID root
set prefix=(\$root)/boot/grub
END
# shellcheck disable=SC2016
"${asRoot[@]}" sh -ec '
  tar -x -f "$1/root.tar" -C "$1/tree" --numeric-owner
  mkdir -p "$1/tree/boot/grub"
  cp "$1/grub.cfg" "$1/tree/boot/grub/grub.cfg"
  mkfs.ext4 -q -L martlet-root -U "$2" -d "$1/tree" "$1/root.ext4"
' sh "$work" "$rootID"
"${asRoot[@]}" rm -rf "$work/tree" "$work/root.tar"

modules="part_gpt ext2 linux normal configfile echo search search_fs_uuid test"
# shellcheck disable=SC2086
grub-mkimage -O x86_64-efi -o "$work/grub.efi" -c "$work/early.cfg" -p /boot/grub fat $modules
# shellcheck disable=SC2086
grub-mkimage -O i386-pc -o "$work/core.img" -c "$work/early.cfg" -p /boot/grub biosdisk $modules
truncate -s $((efiCount * sector)) "$work/efi.fat"
mkfs.vfat -n ESP "$work/efi.fat" >/dev/null
mmd -i "$work/efi.fat" ::EFI ::EFI/BOOT
mcopy -i "$work/efi.fat" "$work/grub.efi" ::EFI/BOOT/BOOTX64.EFI

echo "make-debian-image: disk"
raw=$work/disk.raw
rootCount=$((rootMegabytes * 2048))
truncate -s $(((rootStart + rootCount + 2048) * sector)) "$raw"
sfdisk -q "$raw" <<END
label: gpt
14: start=$biosStart, size=$biosCount, type=21686148-6449-6E6F-744E-656564454649
15: start=$efiStart, size=$efiCount, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
1: start=$rootStart, size=$rootCount, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
END
put() { dd if="$1" of="$raw" bs=$sector seek="$2" conv=notrunc,sparse status=none; }
put "$work/efi.fat" $efiStart
put "$work/root.ext4" $rootStart

# A number of 64 bits, the low byte first, at an offset of a file.
number() {
  local byte text=
  for byte in 0 1 2 3 4 5 6 7; do text+=$(printf '\\x%02x' $(($2 >> byte * 8 & 255))); done
  printf '%b' "$text" | dd of="$1" bs=1 seek="$3" conv=notrunc status=none
}
# GRUB's boot sector says where its core begins, and the core's first sector where its second is.
dd if=/usr/lib/grub/i386-pc/boot.img of="$raw" bs=440 count=1 conv=notrunc status=none
number "$raw" $biosStart $((0x5C))
number "$work/core.img" $((biosStart + 1)) $((0x1F4))
put "$work/core.img" $biosStart

case $output in
  *.qcow2) qemu-img convert -q -O qcow2 "$raw" "$work/disk.qcow2" && mv "$work/disk.qcow2" "$output" ;;
  *) mv "$raw" "$output" ;;
esac
cp "$work/boot/$kernel" "$output.vmlinuz"
cp "$work/boot/$initrd" "$output.initrd"
echo "make-debian-image: $output"
