# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The parts of Scripts/bench.sh: one function for each section, and what they share. A section
# writes its raw figures as lines into files under $work, has awk reduce them, prints a table, and
# adds "key value" lines to $work/summary.

failures=0
marker=MARTLET-GUEST-READY
work=$(mktemp -d)
children=()
trap 'for child in "${children[@]}"; do kill "$child" 2>/dev/null || :; done; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

fail() {
  echo "bench: $*" >&2
  exit 2
}
# A figure that cannot be had: the run goes on, its exit status tells.
complain() {
  echo "bench: $*" >&2
  failures=1
}
heading() { printf '== %s\n' "$*"; }
wants() { case ,$sections, in *",$1,"*) return 0 ;; *) return 1 ;; esac; }

# Guests, where a section needs them.
prepare() {
  if { wants programs || wants suite || wants qemu || wants smp || wants boot || wants memory; } &&
    { [ ! -s "$kernel" ] || [ ! -s .guest/initramfs-marker.cpio ]; }; then
    Scripts/fetch-guest.sh --cloud || :
  fi
  have_guest=yes
  [ -s "$kernel" ] && [ -s .guest/initramfs-marker.cpio ] || have_guest=
  : >"$work/summary"
}

describe_machine() {
  local model load
  model=$(sed -n '/^model name/{s/^[^:]*: //p;q}' /proc/cpuinfo)
  read -r load _ </proc/loadavg
  echo "Host: $model, $(nproc) CPUs, Linux $(uname -r), load $load"
  echo "Martlet: $martlet, engine $engine, $(git describe --always --dirty 2>/dev/null || echo '-')"
  [ -z "$qemu" ] || echo "QEMU: $("$qemu" --version | sed -n 1p), TCG, -M q35 -cpu max"
  echo "Figures: $statistic of $runs run(s)"
  if awk "BEGIN { exit !($load > 0.7) }"; then
    echo "The machine is busy: times of this run are not to be quoted."
  fi
  summarise "host.model ${model// /_}" "host.load $load" "runs $runs" "statistic $statistic"
}

summarise() { printf '%s\n' "$@" >>"$work/summary"; }

print_summary() {
  echo
  heading 'Summary (key value)'
  cat "$work/summary"
  [ -z "$output" ] || cp "$work/summary" "$output"
}

# The median, or with --best the least, of the numbers in standard input; "-" of none.
reduce() {
  sort -g | awk -v statistic="$statistic" '
    { value[NR] = $1 }
    END {
      if (NR == 0) print "-"
      else if (statistic == "best") print value[1]
      else if (NR % 2) print value[(NR + 1) / 2]
      else print (value[NR / 2] + value[NR / 2 + 1]) / 2
    }'
}

# The command that boots an initial RAM disk with text on the kernel's command line, as the array
# `command`. The same kernel, disk, memory and text for all.
# usage: boot_command ENGINE DISK TEXT [CPUS]
boot_command() {
  local which=$1 disk=$2 text=$3 cpus=${4:-1}
  case $which in
    martlet)
      command=("$martlet" run --engine "$engine" --kernel "$kernel" --initrd "$disk"
        --memory "$memory" --cpus "$cpus" --append "$text" "${martlet_arguments[@]}")
      ;;
    qemu | qemu-kvm)
      command=("$qemu" -M q35)
      if [ "$which" = qemu ]; then
        command+=(-accel tcg -cpu max)
      else
        command=("$martlet" kvm -- "${command[@]}" -accel kvm -cpu "$qemu_cpu")
      fi
      command+=(-smp "$cpus" -m "$memory" -nodefaults -display none -serial stdio -no-reboot
        -kernel "$kernel" -initrd "$disk" -append "console=ttyS0 $text")
      ;;
  esac
}

microseconds() { echo "${EPOCHREALTIME/./}"; }

# User and system time of a process so far, in milliseconds.
processor_time() {
  local fields
  read -r fields <"/proc/$1/stat" || return 1
  # shellcheck disable=SC2086
  set -- ${fields##*) }
  echo $(((${12} + ${13}) * 1000 / $(getconf CLK_TCK)))
}

# Suite

section_suite() {
  heading "Guest suite: the same program natively, on martlet and on QEMU TCG (scale $scale)"
  compare_suite suite
  suite_speed
}

# Both columns are QEMU's: the same program, machine and guest, another accelerator.
section_qemu() {
  heading "Guest suite under QEMU: natively, on martlet's KVM and on QEMU's TCG (scale $scale)"
  if [ -z "$qemu" ]; then
    echo "skipped: no QEMU"
    return
  fi
  local engines=(qemu-kvm qemu)
  compare_suite qemu
}

# usage: compare_suite PREFIX-OF-KEYS
compare_suite() {
  if [ -z "$have_guest" ] || ! Scripts/build-suite.sh; then
    echo "skipped: no guest or no suite"
    return
  fi
  compare "$1" suite
}

# Runs a benchmark natively and on each of $engines, by the functions NAME_natively and NAME_in_guest,
# and prints the table.
# usage: compare PREFIX-OF-KEYS NAME
compare() {
  local run which
  : >"$work/$2"
  for ((run = 1; run <= runs; run++)); do
    "$2_natively" >>"$work/$2"
    for which in "${engines[@]}"; do "$2_in_guest" "$which" >>"$work/$2"; done
  done
  awk -v statistic="$statistic" -v engines="native ${engines[*]}" -v summary="$work/summary" \
    -v prefix="$1" -f Scripts/bench-suite.awk "$work/$2" || failures=1
}

# Prints a guest's lines that begin with WORD, with the engine's name in the place of it. A guest that
# finishes prints END.
# usage: lines_of_guest ENGINE DISK TEXT CPUS WORD END
lines_of_guest() {
  boot_command "$1" "$2" "$3" "$4"
  timeout --foreground 3600 "${command[@]}" </dev/null >"$work/$1.out" 2>"$work/$1.err" || :
  tr -d '\r' <"$work/$1.out" | sed -n "s/^$5 /$1 /p"
  grep -q "$6" "$work/$1.out" || {
    complain "the guest of $2 did not finish on $1; its last lines:"
    tail -n 5 "$work/$1.out" >&2
    tail -n 5 "$work/$1.err" >&2
  }
}

suite_natively() {
  # shellcheck disable=SC2086
  .guest/suite "$scale" ${kernels//,/ } | sed -n 's/^suite /native /p'
}

# usage: suite_in_guest ENGINE [KERNELS CPUS COPIES]
suite_in_guest() {
  local only=${2-$kernels}
  local text="quiet suite.scale=$scale suite.copies=${4:-1}"
  [ -z "$only" ] || text+=" suite.only=$only"
  lines_of_guest "$1" .guest/initramfs-suite.cpio "$text" "${3:-1}" suite 'SUITE-ENDS status=0'
}

# A run of its own: counting costs time.
suite_speed() {
  local mips
  [ -s "$work/suite" ] || return 0
  martlet_arguments+=(--stats)
  suite_in_guest martlet >/dev/null
  unset 'martlet_arguments[-1]'
  mips=$(sed -n 's/^MIPS: \([0-9.]*\).*/\1/p' "$work/martlet.err")
  [ -n "$mips" ] || return 0
  echo "Martlet over a run with --stats, the kernel's boot included: $mips MIPS"
  summarise "suite.martlet.mips $mips"
}

# Programs

section_programs() {
  heading 'Programs of Debian: natively, on martlet, on QEMU TCG, under QEMU on martlet'
  if [ -z "$have_guest" ] || ! Scripts/build-programs.sh; then
    echo "skipped: no guest or no programs"
    return
  fi
  local memory=2G engines=("${engines[@]}")
  [ -z "$qemu" ] || engines+=(qemu-kvm)
  compare programs programs
  worst_programs
}

programs_natively() {
  # shellcheck disable=SC2086
  Scripts/enter-root.sh .guest/programs/root /programs/runner.sh ${programs//,/ } </dev/null |
    sed -n 's/^program /native /p; s/^# /native: /w /dev/stderr'
}

# usage: programs_in_guest ENGINE
programs_in_guest() {
  local text=quiet
  [ -z "$programs" ] || text+=" programs.only=$programs"
  lines_of_guest "$1" .guest/programs/initramfs.cpio "$text" 1 program PROGRAMS-END
}

# The three that are slowest against native, for a profile (docs/profiling.md).
worst_programs() {
  echo "Slowest on martlet: $(sed -n 's/^programs\.martlet\.\(.*\)\.ratio \(.*\)/\2 \1/p' \
    "$work/summary" | sort -gr | sed -n '1,3s/^\([^ ]*\) \(.*\)/\2 (\1)/p' | paste -s -d ' ')"
}

# Two CPUs

smp_kernels=sieve,crc,nbody,recursion

section_smp() {
  heading "Two busy CPUs: work done by two processes at once, in multiples of what one does alone"
  if [ -z "$have_guest" ] || ! Scripts/build-suite.sh; then
    echo "skipped: no guest"
    return
  fi
  if [ "$(nproc)" -lt 2 ]; then
    echo "skipped: this machine has one CPU"
    return
  fi
  local run which copies name gain
  : >"$work/smp"
  for ((run = 1; run <= runs; run++)); do
    for copies in 1 2; do
      smp_native "$copies" | sed "s/^/$copies /" >>"$work/smp"
      for which in "${engines[@]}"; do
        suite_in_guest "$which" "$smp_kernels" 2 "$copies" | sed "s/^/$copies /" >>"$work/smp"
      done
    done
  done
  for which in native "${engines[@]}"; do
    gain=$(for name in ${smp_kernels//,/ }; do
      echo "$(smp_time 1 "$which" "$name")" "$(smp_time 2 "$which" "$name")"
    done | awk '$1 > 0 && $2 > 0 { s += log(2 * $1 / $2); n++ }
      END { if (n) printf "%.2f", exp(s / n); else print "-" }')
    printf '%-12s %8s\n' "$which" "$gain"
    summarise "smp.$which.gain $gain"
  done
  # COPIES ENGINE KERNEL CLASS SECONDS CHECKSUM
  awk '$2 == "native" { right[$3] = $6 }
    $2 != "native" && $6 != right[$3] { print "WRONG on " $2 ": " $3 " " $6; wrong = 1 }
    END { exit wrong }' "$work/smp" || failures=1
}

smp_time() {
  awk -v key="$1 $2 $3" '$1 " " $2 " " $3 == key { print $5 }' "$work/smp" | reduce
}

smp_native() {
  local copy
  for ((copy = 0; copy < $1; copy++)); do
    # shellcheck disable=SC2086
    .guest/suite "$scale" ${smp_kernels//,/ } >"$work/native.$copy" &
  done
  wait
  for ((copy = 0; copy < $1; copy++)); do sed 's/^suite /native /' "$work/native.$copy"; done
}

# Instructions and exits, measured from inside

run_martlet_bench() {
  : >"$work/inside"
  add_martlet_bench "$@"
}

# usage: add_martlet_bench [--preload] SECTION...
add_martlet_bench() {
  command=("$martlet_bench")
  if [ "$1" = --preload ]; then
    command=("$martlet" kvm -- "$martlet_bench")
    shift
  fi
  if [ ! -x "$martlet_bench" ]; then
    echo "skipped: $martlet_bench is missing"
    return 1
  fi
  local run
  for ((run = 1; run <= runs; run++)); do
    "${command[@]}" "$@" >>"$work/inside" || {
      complain "${command[*]} $* failed"
      return 1
    }
  done
}

section_mips() {
  heading 'The processor alone: millions of instructions a second of CPU time'
  run_martlet_bench loops || return 0
  local name kind value line
  printf '%-12s %12s %12s\n' '' interpreter translator
  for name in $(awk '$1 == "mips" && !seen[$2]++ { print $2 }' "$work/inside"); do
    line=$(printf '%-12s' "$name")
    for kind in mips translated; do
      # More is better here: the best is the least of the negated.
      value=$(awk -v kind="$kind" -v name="$name" '$1 == kind && $2 == name { print -$3 }' \
        "$work/inside" | reduce)
      value=${value#-}
      [ -z "$value" ] || summarise "$kind.$name $value"
      line+=$(printf ' %12s' "${value:--}")
    done
    echo "$line"
  done
  line=$(printf '%-12s' integer)
  for kind in mips translated; do
    value=$(awk -v kind="$kind" 'index($1, kind ".") == 1 && $1 != kind ".vector" {
      s += log($2); n++ } END { if (n) printf "%.1f", exp(s / n) }' "$work/summary")
    [ -z "$value" ] || summarise "$kind.integer $value"
    line+=$(printf ' %12s' "${value:--}")
  done
  echo "$line   geometric mean, vector left out"
}

section_exits() {
  heading 'Exit round trips: nanoseconds of CPU time, the loop around it included'
  run_martlet_bench verbs exits || return 0
  add_martlet_bench --preload client || :
  local name where value line
  printf '%-12s %10s %10s %10s %12s %12s\n' '' 'VT-x alone' 'soft KVM' 'with SVM' 'martlet kvm' \
    'kernel KVM'
  for name in $(awk '$1 == "exit" && !seen[$3]++ { print $3 }' "$work/inside"); do
    line=$(printf '%-12s' "$name")
    for where in verbs soft soft-amd client kvm; do
      value=$(awk -v where="$where" -v name="$name" \
        '$1 == "exit" && $2 == where && $3 == name { print $4 }' "$work/inside" | reduce)
      [ "$value" = - ] || summarise "exit.$where.$name $value"
      case $where in
        kvm | client) line+=$(printf ' %12s' "$value") ;;
        *) line+=$(printf ' %10s' "$value") ;;
      esac
    done
    echo "$line"
  done
}

section_latency() {
  heading 'Latency: microseconds of wall time, median (99th percentile)'
  run_martlet_bench latency || return 0
  add_martlet_bench --preload client || :
  local name where line median late
  printf '%-12s %18s %18s %18s\n' '' 'soft KVM' 'martlet kvm' 'kernel KVM'
  for name in $(awk '$1 == "latency" && !seen[$3]++ { print $3 }' "$work/inside"); do
    line=$(printf '%-12s' "$name")
    for where in soft client kvm; do
      median=$(latency_of "$where" "$name" 4)
      late=$(latency_of "$where" "$name" 5)
      [ "$median" = - ] || summarise "latency.$where.$name $median"
      line+=$(printf ' %18s' "$median ($late)")
    done
    echo "$line"
  done
}

latency_of() {
  awk -v where="$1" -v name="$2" -v field="$3" \
    '$1 == "latency" && $2 == where && $3 == name { print $field / 1000 }' "$work/inside" | reduce
}

# Boot

# Appends "WHICH wall-ms cpu-ms" of one boot from the start of the program to init's marker.
boot_once() {
  local which=$1 begin line process
  boot_command "$which" .guest/initramfs-marker.cpio quiet
  rm -f "$work/console"
  mkfifo "$work/console"
  begin=$(microseconds)
  "${command[@]}" </dev/null >"$work/console" 2>"$work/$which.err" &
  process=$!
  children+=("$process")
  exec 3<"$work/console"
  while IFS= read -r -t 300 line <&3; do
    case $line in
      *"$marker"*)
        echo "$which $((($(microseconds) - begin) / 1000)) $(processor_time "$process")" \
          >>"$work/boot"
        break
        ;;
    esac
  done
  # The rest, until the guest is off; a guest that hangs is ended.
  while IFS= read -r -t 60 line <&3; do :; done
  exec 3<&-
  kill "$process" 2>/dev/null || :
  wait "$process" 2>/dev/null || :
  children=()
}

section_boot() {
  heading 'Boot: from power-on to init, Debian cloud kernel, 1 CPU'
  if [ -z "$have_guest" ]; then
    echo "skipped: no guest kernel"
    return
  fi
  local run which wall cpu
  : >"$work/boot"
  for ((run = 1; run <= runs; run++)); do
    for which in "${engines[@]}"; do boot_once "$which"; done
  done
  printf '%-12s %10s %10s\n' '' 'wall ms' 'CPU ms'
  for which in "${engines[@]}"; do
    wall=$(awk -v which="$which" '$1 == which { print $2 }' "$work/boot" | reduce)
    cpu=$(awk -v which="$which" '$1 == which { print $3 }' "$work/boot" | reduce)
    [ "$wall" != - ] || complain "the kernel did not reach init on $which"
    printf '%-12s %10s %10s\n' "$which" "$wall" "$cpu"
    summarise "boot.$which.wall-ms $wall" "boot.$which.cpu-ms $cpu"
  done
  awk -v summary="$work/summary" '
    $1 ~ /^boot\./ { value[$1] = $2 }
    END {
      if (value["boot.qemu.wall-ms"] + 0 == 0 || value["boot.martlet.wall-ms"] + 0 == 0) exit
      wall = value["boot.martlet.wall-ms"] / value["boot.qemu.wall-ms"]
      cpu = value["boot.martlet.cpu-ms"] / value["boot.qemu.cpu-ms"]
      printf "%-12s %10.2f %10.2f   martlet to QEMU\n", "ratio", wall, cpu
      printf "boot.ratio.wall %.3f\nboot.ratio.cpu %.3f\n", wall, cpu >> summary
    }' "$work/summary"
}

# Memory

section_memory() {
  heading "Memory of the program beyond the guest's: MiB"
  printf '%-12s %10s %10s %10s\n' '' peak guest beyond
  memory_of builtin "$martlet" run --engine "$engine" --memory "$memory" --stats \
    "${martlet_arguments[@]}"
  if [ -n "$have_guest" ]; then
    boot_command martlet .guest/initramfs-marker.cpio quiet
    memory_of linux "${command[@]}" --stats
  fi
}

# usage: memory_of NAME COMMAND...
memory_of() {
  local name=$1 peak guest
  shift
  timeout --foreground 300 "$@" </dev/null >"$work/memory.out" 2>"$work/memory.err" || :
  peak=$(sed -n 's/^memory: \([0-9]*\) MiB.*/\1/p' "$work/memory.err")
  guest=$(sed -n 's/^memory: .* \([0-9]*\) MiB the guest.*/\1/p' "$work/memory.err")
  if [ -z "$peak" ] || [ -z "$guest" ]; then
    complain "no memory figures of the guest $name"
    return
  fi
  printf '%-12s %10d %10d %10d\n' "$name" "$peak" "$guest" $((peak - guest))
  summarise "memory.$name.beyond-mib $((peak - guest))" "memory.$name.peak-mib $peak"
}

# Start-up

section_startup() {
  heading "Start of the program, milliseconds"
  local name milliseconds
  for name in martlet true; do
    case $name in
      martlet) command=("$martlet" --help) ;;
      true) command=(/bin/true) ;;
    esac
    milliseconds=$(start_times | reduce)
    printf '%-12s %8.1f\n' "$name" "$milliseconds"
    summarise "startup.$name.ms $milliseconds"
  done
  ls -l "$martlet" | awk -v summary="$work/summary" '{
    printf "%-12s %8.1f   size of the program, MiB\n", "size", $5 / 1048576
    printf "startup.size-mib %.1f\n", $5 / 1048576 >> summary }'
}

start_times() {
  local run begin
  for ((run = 0; run < 10 * runs; run++)); do
    begin=$(microseconds)
    "${command[@]}" >/dev/null
    awk "BEGIN { print ($(microseconds) - $begin) / 1000 }"
  done
}
