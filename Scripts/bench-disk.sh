# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154
#
# The section "disk" of Scripts/bench.sh: the same image, by martlet's virtio disk and by QEMU's on
# martlet's KVM. Both cache nothing of their own and write through the host's page cache.

disk_names='write read random-read-1 random-write-1 random-read-16 random-write-16'

section_disk() {
  heading 'Disks: 4 KiB at random, a second; 1 MiB in sequence, MiB a second'
  local which format run name line
  if [ -z "$have_guest" ] || ! build_disk_guest; then
    echo "skipped: no guest, no virtio drivers or no static compiler"
    return
  fi
  local which_ones=(martlet)
  [ -z "$qemu" ] || which_ones+=(qemu-kvm)
  : >"$work/disk"
  for format in raw qcow2; do
    for ((run = 1; run <= runs; run++)); do
      for which in "${which_ones[@]}"; do disk_once "$which" "$format"; done
    done
  done
  printf '%-18s %12s %12s %8s\n' '' "${which_ones[@]}" ratio
  for format in raw qcow2; do
    for name in $disk_names; do
      line=$(printf '%-18s' "$format $name")
      for which in "${which_ones[@]}"; do
        value=$(disk_value "$which" "$format" "$name")
        line+=$(printf ' %12s' "$value")
        summarise "disk.$which.$format.$name $value"
      done
      echo "$line $(disk_ratio "$format" "$name")"
    done
  done
}

disk_value() {
  awk -v which="$1" -v format="$2" -v name="$3" \
    '$1 == which && $2 == format && $3 == name { print $4 }' "$work/disk" | reduce
}

disk_ratio() {
  awk -v a="$(disk_value martlet "$1" "$2")" -v b="$(disk_value qemu-kvm "$1" "$2")" \
    'BEGIN { if (b > 0) printf "%8.2f", a / b }'
}

# One run with a new image of 512 MiB.
disk_once() {
  local which=$1 format=$2 image=$work/disk.$2 seconds=1
  rm -f "$image"
  if [ "$format" = raw ]; then
    truncate -s 512M "$image"
  else
    qemu-img create -q -f qcow2 "$image" 512M
  fi
  boot_command "$which" .guest/initramfs-disk.cpio "quiet disk.seconds=$seconds"
  if [ "$which" = martlet ]; then
    command+=(--disk "$image,format=$format")
  else
    command+=(-drive "file=$image,format=$format,if=virtio,cache=writeback")
  fi
  timeout 120 "${command[@]}" </dev/null 2>/dev/null | tr -d '\r' |
    sed -n "s/^disk /$which $format /p" >>"$work/disk" || :
}

build_disk_guest() {
  local modules=() module compiler
  for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
    [ -e ".guest/modules/$module.ko" ] || return 1
    modules+=(".guest/modules/$module.ko")
  done
  for compiler in ${CC:-} clang cc; do
    command -v "$compiler" >/dev/null 2>&1 || continue
    "$compiler" -O2 -static -Wall -o "$work/disk-program" Guests/disk/disk.c 2>/dev/null || continue
    mkdir -p "$work/guest"
    mv "$work/disk-program" "$work/guest/disk"
    Scripts/make-initramfs.sh .guest/busybox Scripts/init-disk .guest/initramfs-disk.cpio \
      "$work/guest/disk" "${modules[@]}"
    return
  done
  return 1
}
