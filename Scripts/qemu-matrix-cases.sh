# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154
#
# The rows of qemu-matrix.sh.

console="console=ttyS0 panic=-1"
cloud=.guest/vmlinuz-cloud-amd64 generic=.guest/vmlinuz-amd64 old=.guest/vmlinuz-686-pae

# Boots to init, which says how many CPUs it sees and powers off.
boots() {
  local kernel=$1 machine_type=$2 cpus=$3 initrd=.guest/initramfs-marker.cpio
  shift 3
  [ "$kernel" != "$old" ] || initrd=.guest/initramfs-marker-i386.cpio
  start guest -M "$machine_type" -smp "$cpus" -kernel "$kernel" \
    -initrd "$initrd" -append "$console" "$@"
  await 60 "$work/guest.log" 'MARTLET-GUEST-READY' || return
  grep -aq "MARTLET-GUEST-READY cpus=$cpus" "$work/guest.log" || {
    note="$(grep -ao 'MARTLET-GUEST-READY.*' "$work/guest.log" | tr -d '\r')"
    return 1
  }
  exited 20
}

# Linux takes the counters that CPUID leaf 0AH has, and has its watchdog count cycles.
counters() {
  start guest "$@" -kernel "$cloud" -initrd .guest/initramfs-marker.cpio \
    -append "$console nmi_watchdog=1"
  await 60 "$work/guest.log" 'MARTLET-GUEST-READY' || return
  grep -aq 'Performance Events:.*PMU driver' "$work/guest.log" &&
    grep -aq 'NMI watchdog: Enabled' "$work/guest.log" || {
    note="no PMU driver or no watchdog"
    return 1
  }
  exited 20
}

# 32-bit programs of Debian's on a 64-bit kernel, which they enter by SYSCALL or SYSENTER, as the
# vendor has it.
programs() {
  local kind
  Scripts/make-initramfs.sh .guest/busybox Scripts/init-matrix "$work/programs.cpio" \
    .guest/busybox-i386 .guest/dynamic-i386/*
  start guest "$@" -kernel "$cloud" -initrd "$work/programs.cpio" \
    -append "$console matrix.task=programs"
  await 60 "$work/guest.log" 'MATRIX done' && exited 20 || return
  for kind in static dynamic; do
    [ "$(printed $kind guest)" = runs ] || { note="the $kind program does not run" && return 1; }
  done
}

# Debian with KVM on a processor of vendor $1, which boots Debian in a machine of its own: with $2 CPUs
# in both machines and $3 as a parameter of kvm_amd or kvm_intel.
nested() {
  local vendor=$1 cpus=$2 parameter=$3 name=GenuineIntel launcher=("${launcher[@]}")
  shift 3
  # QEMU asks the host's own processor for its vendor.
  [ "$vendor" = intel ] || name=AuthenticAMD
  [ "${launcher[0]}" = env ] || launcher=("${launcher[0]}" kvm "${options[@]}" --vendor "$vendor" --)
  Scripts/make-hypervisor.sh "${MARTLET:-.build/release/martlet}" "$work/hypervisor.cpio" || return
  start guest -M q35 -cpu host,vendor=$name -m 1G -smp "$cpus" -kernel "$cloud" -initrd "$work/hypervisor.cpio" \
    -append "$console quiet hypervisor.cpus=$cpus hypervisor.module=$parameter" "$@"
  await 120 "$work/guest.log" 'HYPERVISOR round 1, status 0' || return
  grep -aq "MARTLET-GUEST-READY cpus=$cpus" "$work/guest.log" || {
    note="the inner machine said nothing"
    return 1
  }
  exited 20
}

# A restart by the guest, another by the monitor.
resets() {
  local count
  ending=()
  start guest "$@" -kernel "$cloud" -initrd .guest/initramfs-marker.cpio \
    -append "$console martlet.reboot"
  await 60 "$work/guest.log" 'MARTLET-GUEST-READY' || return
  await_lines 60 guest 'MARTLET-GUEST-READY' 2 || return
  monitor 20 system_reset || return
  count=$(lines guest 'Linux version')
  await_lines 60 guest 'Linux version' $((count + 1)) &&
    await_lines 60 guest 'MARTLET-GUEST-READY' $((count + 1))
}

# Hashes of a disk that the guest reads and of one that it fills.
disk() {
  local device=$1
  shift
  head -c 8M /dev/urandom >"$work/read.img"
  truncate -s 8M "$work/write.img"
  start guest "$@" -kernel "$cloud" -initrd "$work/matrix.cpio" \
    -append "$console matrix.task=disk" \
    -drive "file=$work/read.img,format=raw,if=none,id=a" -device "$device,drive=a" \
    -drive "file=$work/write.img,format=raw,if=none,id=b" -device "$device,drive=b"
  await 60 "$work/guest.log" 'MATRIX done' && exited 20 || return
  same "what the guest read" "$(printed read guest)" "$work/read.img" &&
    same "what the guest wrote" "$(printed wrote guest)" "$work/write.img"
}

# The file behind the guest's memory is truncated while the guest reads from its end: QEMU says so, stops the
# guest, and goes on. A boot sector prints a line, then reads at 0x90000.
truncated() {
  local memory=/dev/shm/qemu-matrix.$$ sector='\372\061\300\216\330\374\276\035\174\272\370\003\254'
  sector+='\204\300\164\003\356\353\370\270\000\220\216\330\212\007\353\374MATRIX reads\n\000'
  truncate -s 1M "$work/sector.img"
  printf "$sector" | dd of="$work/sector.img" conv=notrunc status=none
  printf '\125\252' | dd of="$work/sector.img" bs=1 seek=510 conv=notrunc status=none
  start guest "$@" -machine memory-backend=m -hda "$work/sector.img" \
    -object "memory-backend-file,id=m,size=512M,mem-path=$memory,share=on"
  await 60 "$work/guest.log" 'MATRIX reads' && sleep 1 && truncate -s 512K "$memory" &&
    await 20 "$work/guest.messages" 'kvm run failed Bad address' &&
    monitor 20 'info status' && [[ $answer == *internal-error* ]] || {
    rm -f "$memory"
    return 1
  }
  rm -f "$memory"
  printf '{"execute": "quit"}\n' >&"$monitor_in"
  exited 20
}

same() {
  [ "$2" = "$(sha256sum "$3" | cut -c 1-64)" ] && return
  note="$1 has another hash than ${3##*/}"
  return 1
}

# Hashes of a file that the guest fetches from this machine and of one that it sends.
network() {
  local device=$1 port web
  shift
  port=$(free_port)
  mkdir -p "$work/web/cgi-bin"
  printf '#!/bin/sh\ncat >"%s"\nprintf "\\r\\n"\n' "$work/sent.img" >"$work/web/cgi-bin/receive"
  chmod +x "$work/web/cgi-bin/receive"
  head -c 8M /dev/urandom >"$work/web/data"
  .guest/busybox httpd -f -p "127.0.0.1:$port" -h "$work/web" &
  web=$!
  machines+=("$web")
  start guest "$@" -kernel "$cloud" -initrd "$work/matrix.cpio" \
    -append "$console matrix.task=net matrix.port=$port" \
    -netdev user,id=net -device "$device,netdev=net"
  await 60 "$work/guest.log" 'MATRIX done' && exited 20 || return
  same "what the guest received" "$(printed received guest)" "$work/web/data" &&
    same "what the guest sent" "$(printed sent guest)" "$work/sent.img"
}

# A disk image with GRUB for SeaBIOS and OVMF alike.
disk_image() {
  [ -e "$work/disk" ] && return
  mkdir -p "$work/tree/boot/grub"
  cp "$cloud" "$work/tree/boot/kernel"
  cp .guest/initramfs-marker.cpio "$work/tree/boot/initrd"
  cat >"$work/tree/boot/grub/grub.cfg" <<EOF
serial --unit=0 --speed=115200
terminal_output serial console
echo "GRUB runs"
linux /boot/kernel $console
initrd /boot/initrd
boot
EOF
  grub-mkrescue -o "$work/disk" "$work/tree" >"$work/mkrescue" 2>&1 && return
  note="grub-mkrescue: $(tail -n 1 "$work/mkrescue")"
  return 1
}

# From a disk by firmware and GRUB.
boots_disk() {
  disk_image || return
  start guest "$@"
  await 120 "$work/guest.log" 'GRUB runs' && await 60 "$work/guest.log" 'MARTLET-GUEST-READY' &&
    exited 20
}

ovmf_flash() {
  cp /usr/share/OVMF/OVMF_VARS_4M.fd "$work/vars.img"
  flash=(-drive "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M$1.fd"
    -drive "if=pflash,format=raw,file=$work/vars.img")
}

boots_ovmf() {
  ovmf_flash "$1"
  shift
  boots_disk "${flash[@]}" "$@"
}

counting=(-kernel "$cloud" -append "$console quiet matrix.task=count")

snapshot_disk() {
  qemu-img create -q -f qcow2 "$work/state.qcow2" 1G
  counting_guest=("$@" "${counting[@]}" -initrd "$work/matrix.cpio"
    -drive "file=$work/state.qcow2,if=none,id=a" -device virtio-blk-pci,drive=a)
}

# savevm; loadvm in the same QEMU and in another one: the guest counts on from where it was saved.
snapshot() {
  local saved reached
  snapshot_disk "$@"
  start guest "${counting_guest[@]}"
  await_count 60 guest 10 || return
  monitor 30 "savevm one" || return
  saved=$(counted guest)
  await_count 60 guest $((saved + 20)) || return
  reached=$(counted guest)
  monitor 30 "loadvm one" || return
  await_lines 60 guest '^MATRIX [0-9]' $((reached + 20)) || return
  finish
  cp "$work/guest.log" "$work/before.log"
  start guest "${counting_guest[@]}" -loadvm one
  await_count 60 guest $((saved + 20)) && finish &&
    chain_holds "$work/before.log" "$work/guest.log"
}

# It runs there before its memory is: pages follow when they are touched.
postcopy() {
  local postcopy=on
  migration "$@"
}

# A guest that counts and hashes moves to another QEMU.
migration() {
  accelerator=$1
  shift
  local source guest=("$@" "${counting[@]}" -initrd "$work/matrix.cpio")
  start there "${guest[@]}" -incoming "unix:$work/migrate.sock"
  local target=$machine target_log=$work/there.log
  [ -z "${postcopy:-}" ] || monitor 20 "migrate_set_capability postcopy-ram on" || return
  start here "${guest[@]}"
  source=$machine
  await_count 60 here 20 "$source" || return
  monitor 20 "migrate_set_parameter max-bandwidth $([ -n "${postcopy:-}" ] && echo 20M || echo 100M)" || return
  [ -z "${postcopy:-}" ] || monitor 20 "migrate_set_capability postcopy-ram on" || return
  monitor 20 "migrate -d unix:$work/migrate.sock" || return
  if [ -n "${postcopy:-}" ]; then
    sleep 0.3
    monitor 20 "migrate_start_postcopy" || return
  fi
  local deadline=$((SECONDS + 90 * patience))
  while :; do
    monitor 20 "info migrate" || return
    case $answer in
      *"Migration status: completed"*) break ;;
      *"Migration status: failed"*) note="migration failed" && return 1 ;;
    esac
    [ $SECONDS -lt $deadline ] || { note="migration does not end" && return 1; }
    sleep 0.3
  done
  local moved
  moved=$(counted here)
  await_count 60 there $((moved + 30)) "$target" || return
  finish "$target"
  finish "$source"
  # A line may have been cut in two by the move.
  { cat "$work/here.log" "$target_log"; } >"$work/both.log"
  chain_holds "$work/both.log" && note="moved at $moved; $note"
}

# gdb at QEMU's stub: breakpoints of both kinds, single steps, registers, a watchpoint.
debugger() {
  local line before
  start guest "$@" -kernel "$cloud" -initrd "$work/matrix.cpio" \
    -append "$console quiet matrix.task=calls" \
    -gdb "unix:path=$work/gdb.sock,server=on,wait=off"
  await 60 "$work/guest.log" 'MATRIX calls' || return
  sed "s/@function@/$(printed address guest)/g" Scripts/qemu-matrix.gdb >"$work/commands"
  timeout $((60 * patience)) gdb -q -nx -batch -ex "set architecture i386:x86-64" \
    -ex "target remote $work/gdb.sock" -x "$work/commands" >"$work/gdb.log" 2>&1
  for line in 'hardware: 1' 'watch: 1' 'software: 1' 'again: 1' 'step: 1' 'written: 1'; do
    grep -q "^$line" "$work/gdb.log" || { note="gdb: not \"$line\"" && return 1; }
  done
  # Let go, the guest goes on.
  before=$(printed calls guest)
  await 30 "$work/guest.log" "MATRIX calls $((before + 20))"
}

# A guest of libvirt's is saved and restored.
libvirt() {
  unshare --mount Scripts/qemu-matrix-libvirt.sh "$work" "$qemu" "${launcher[@]}" \
    >"$work/libvirt.messages" 2>&1 && chain_holds "$work/guest.log" && return
  note="$(tail -n 1 "$work/libvirt.messages")"
  return 1
}

# The Xen hypervisor with Debian's kernel as its first domain, which runs below ring 0.
boots_xen() {
  start guest -M q35 -m 1G -smp 2 -kernel .guest/xen -append "console=com1 dom0_mem=512M" \
    -initrd "$generic console=hvc0 panic=-1,.guest/initramfs-marker.cpio"
  await 120 "$work/guest.log" 'MARTLET-GUEST-READY cpus=2' && exited 20
}

# Memory tests on two CPUs, which find no error.
tests_memory() {
  start guest -M pc -m 64M -smp 2 -kernel ".guest/memtest-$1" -append "console=ttyS0,115200"
  await 120 "$work/guest.log" '#6 ' || return
  ! grep -aqE 'Errors: +[1-9]' "$work/guest.log" || { note="errors in memory" && return 1; }
  finish
}

known_row() {
  [[ $1 =~ $only ]] || return 0
  known=$((known + 1))
  row "$1" known - - "$2"
}

boot_rows() {
  local kernel machine_type chips cpus name
  for kernel in "$cloud" "$generic"; do
    for machine_type in q35 pc microvm; do
      for chips in on split off; do
        for cpus in 1 2 4; do
          name="${kernel#.guest/vmlinuz-} $machine_type irqchip=$chips smp=$cpus"
          if [ $chips = off ] && [ $cpus -gt 1 ] && [ -z "$all_known" ]; then
            known_row "$name" "QEMU spins on a start-up message; on the kernel's KVM, too"
          else
            check "$name" boots "$kernel" "$machine_type,kernel-irqchip=$chips" $cpus
          fi
        done
      done
    done
  done
}

all_rows() {
  boot_rows
  local cpu
  for cpu in host qemu64 Skylake-Server EPYC; do
    check "cloud-amd64 q35 -cpu $cpu" boots "$cloud" q35 2 -cpu $cpu
  done
  check "performance counters" counters -M q35 -cpu host
  check "performance counters, Intel's" counters -M q35 -cpu host,vendor=GenuineIntel
  check "32-bit programs, AMD's" programs -M q35 -cpu max,vendor=AuthenticAMD
  check "32-bit programs, Intel's" programs -M q35 -cpu max,vendor=GenuineIntel
  check "nested: kvm_amd boots Debian" nested amd 1 ''
  check "nested: kvm_amd boots Debian, smp=2" nested amd 2 ''
  check "nested: kvm_amd npt=0 boots Debian" nested amd 1 npt=0
  check "nested: kvm_intel boots Debian" nested intel 1 ''
  check "nested: kvm_intel boots Debian, smp=2" nested intel 2 ''
  check "nested: kvm_intel ept=0 boots Debian" nested intel 1 ept=0
  check "686-pae q35 smp=2" boots "$old" q35 2
  check "686-pae pc -cpu qemu32" boots "$old" pc 1 -cpu qemu32
  check "Xen, Debian as its first domain" boots_xen
  check "memtest86+, 32 bits" tests_memory ia32
  check "memtest86+, 64 bits" tests_memory x64
  check "cloud-amd64 q35 5 GiB" boots "$cloud" q35 2 -m 5G
  check "reset, q35 smp=2" resets -M q35 -smp 2
  check "reset, pc irqchip=off" resets -M pc,kernel-irqchip=off
  check "virtio-blk q35" disk virtio-blk-pci -M q35
  check "virtio-blk pc" disk virtio-blk-pci -M pc -smp 2
  check "virtio-blk microvm" disk virtio-blk-device -M microvm
  check "virtio-blk in a thread (irqfd)" disk virtio-blk-pci,iothread=t -M q35 -object iothread,id=t
  check "virtio-blk, shared memory" disk virtio-blk-pci -M q35,memory-backend=m \
    -object memory-backend-memfd,id=m,size=512M,share=on
  check "memory's file truncated, q35" truncated -M q35
  check "memory's file truncated, pc" truncated -M pc
  check "virtio-net q35" network virtio-net-pci -M q35
  check "virtio-net pc" network virtio-net-pci -M pc -smp 2
  check "virtio-net microvm" network virtio-net-device -M microvm
  check "SeaBIOS, GRUB, disk, pc" boots_disk -M pc -vga std -hda "$work/disk"
  check "SeaBIOS, GRUB, disk, q35" boots_disk -M q35 -vga std -smp 2 -hda "$work/disk"
  check "SeaBIOS, GRUB, CD, q35" boots_disk -M q35 -vga std -cdrom "$work/disk"
  check "OVMF, kernel, q35" boots "$cloud" q35 1 -bios /usr/share/ovmf/OVMF.fd -vga std
  check "OVMF in flash, GRUB, disk, q35" boots_ovmf '' -M q35 -smp 2 -vga std -hda "$work/disk"
  check "OVMF in flash, GRUB, disk, pc" boots_ovmf '' -M pc -vga std -hda "$work/disk"
  # Its flash can be written in system management mode alone.
  check "OVMF with SMM, GRUB, disk, q35" boots_ovmf .secboot -M q35,smm=on -smp 2 \
    -global driver=cfi.pflash01,property=secure,value=on -vga std -hda "$work/disk"
  check "savevm, loadvm, q35" snapshot -M q35
  check "savevm, loadvm, pc smp=2" snapshot -M pc -smp 2
  check "migration, q35" migration '' -M q35
  check "migration, q35 smp=2" migration '' -M q35 -smp 2
  check "migration, q35 irqchip=split smp=4" migration '' -M q35,kernel-irqchip=split -smp 4
  check "migration by postcopy, q35" postcopy '' -M q35 -cpu host
  check "migration by postcopy, q35 smp=2" postcopy '' -M q35 -cpu host -smp 2
  check "migration, dirty ring" migration ,dirty-ring-size=4096 -M q35
  if [ "$(id -u)" = 0 ]; then
    check "libvirt: create, save, restore" libvirt
  else
    known_row "libvirt: create, save, restore" "needs root, for directories of its own"
  fi
  check "gdb, q35" debugger -M q35
  check "gdb, q35 smp=2" debugger -M q35 -smp 2
}

quick_rows() {
  check "cloud-amd64 microvm irqchip=on smp=1" boots "$cloud" microvm 1
  check "cloud-amd64 q35 irqchip=split smp=2" boots "$cloud" q35,kernel-irqchip=split 2
  check "cloud-amd64 pc irqchip=off smp=1" boots "$cloud" pc,kernel-irqchip=off 1 -cpu host
  check "virtio-blk q35" disk virtio-blk-pci -M q35
  check "virtio-net q35" network virtio-net-pci -M q35
  check "savevm, loadvm, q35" snapshot -M q35
  check "migration, q35" migration '' -M q35
}
