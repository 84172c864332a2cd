#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Measures Martlet beside the host itself and beside QEMU's TCG, all in one run. docs/benchmarks.md
# says what each section measures and how to read it.
#
# usage: Scripts/bench.sh [OPTION...]
#
#   --quick            one run of everything, little work
#   --runs N           runs of everything; figures are medians of them (default 3)
#   --best             the best of the runs instead of their median: for a machine that is not idle
#   --scale S          work of the guest suite (default 0.2)
#   --kernels A,B      these kernels of the suite alone
#   --programs A,B     these of the programs alone
#   --sections A,B     these sections alone: programs, suite, smp, mips, exits, latency, boot,
#                      memory, startup; and qemu and disk, which are not among the default ones
#   --engine E         martlet's engine (default soft)
#   --memory M         memory of guests (default 512M)
#   --martlet-args S   more arguments for "martlet run"
#   --qemu-cpu MODEL   QEMU's -cpu where it runs on martlet's KVM (default max)
#   --no-qemu          leave QEMU out
#   --output FILE      write the summary into FILE, too
#
# Environment: MARTLET and MARTLET_BENCH name the programs (default: the release build's), QEMU the
# emulator. The exit status is not 0 when a kernel's checksum is wrong or a guest does not finish.

set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
. Scripts/bench-lib.sh
. Scripts/bench-disk.sh

runs=3 scale=0.2 kernels='' programs='' engine=soft memory=512M
sections=programs,suite,smp,mips,exits,latency,boot,memory,startup
qemu_cpu=max statistic=median output='' martlet_arguments=()
martlet=${MARTLET:-.build/release/martlet}
martlet_bench=${MARTLET_BENCH:-.build/release/martlet-bench}
qemu=${QEMU:-qemu-system-x86_64}

while [ $# -gt 0 ]; do
  case $1 in
    --quick) runs=1 scale=0.05 ;;
    --best) statistic=best ;;
    --no-qemu) qemu= ;;
    --help | -h)
      sed -n '4,/^set /s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --runs | --scale | --kernels | --programs | --sections | --engine | --memory | --martlet-args | --output | \
      --qemu-cpu)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case $1 in
        --runs) runs=$2 ;;
        --scale) scale=$2 ;;
        --kernels) kernels=$2 ;;
        --programs) programs=$2 ;;
        --sections) sections=$2 ;;
        --engine) engine=$2 ;;
        --memory) memory=$2 ;;
        --qemu-cpu) qemu_cpu=$2 ;;
        --martlet-args) read -ra martlet_arguments <<<"$2" ;;
        --output) output=$2 ;;
      esac
      shift
      ;;
    *) fail "unknown option $1; --help lists them" ;;
  esac
  shift
done
# Every run is a first one, unless the user wants it otherwise.
case " ${martlet_arguments[*]} " in
  *" --translation-cache"*) ;;
  *) martlet_arguments=(--translation-cache off "${martlet_arguments[@]}") ;;
esac
[[ $runs =~ ^[1-9][0-9]*$ ]] || fail "--runs takes a number above 0, not $runs"
[[ $scale =~ ^[0-9]*\.?[0-9]+$ ]] || fail "--scale takes a number, not $scale"
for section in ${sections//,/ }; do
  case $section in
    programs | suite | qemu | disk | smp | mips | exits | latency | boot | memory | startup) ;;
    *)
      fail "there is no section $section: programs, suite, qemu, disk, smp, mips, exits, latency, boot," \
        "memory, startup"
      ;;
  esac
done

[ -x "$martlet" ] || fail "$martlet is missing: run make build"
kernel=.guest/vmlinuz-cloud-amd64
prepare
if [ -n "$qemu" ] && ! command -v "$qemu" >/dev/null 2>&1; then
  echo "QEMU is not installed ($qemu): its columns are left out."
  qemu=
fi
describe_machine

engines=(martlet)
[ -z "$qemu" ] || engines+=(qemu)
for section in ${sections//,/ }; do
  echo
  "section_$section"
done
print_summary
exit "$failures"
