#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs the kernel's own KVM selftests on the software KVM, with Intel's processor and with AMD's, and
# prints a table: the result of each and its reason. The tests come from Debian's linux-source-6.1,
# which is downloaded, not installed, and are built in .conformance/, which git ignores.
#
# usage: Scripts/conformance.sh [TEST...]      names as in Scripts/conformance-expected.txt
#
#   CONFORMANCE_TIMEOUT   seconds that a test may take (default: 150; hardware_disable_test, which
#                         starts 512 processes of 69 busy threads, has ten times as long)
#   CONFORMANCE_VENDORS   processors of the software KVM (default: intel amd)
#   CONFORMANCE_RUNNER    what runs a test instead, on a KVM of one processor
#
# pass: exit status 0, with one processor at least, and no failure with another. skip: the test says
# that it needs something that is not offered (status 4).
# out: it needs something that is not offered and does not look, so it is not run. FAIL: everything
# else. A test whose source is edited says so. Scripts/conformance-expected.txt has the reason of
# each that does not pass; a failure or a skip that is not listed there makes the exit status 1.

set -eu
cd "$(dirname "$0")/.."
root=$PWD
cache=$root/.conformance
package=linux-source-6.1
selftests=$cache/src/tools/testing/selftests/kvm
expected=$root/Scripts/conformance-expected.txt
timeout=${CONFORMANCE_TIMEOUT:-150}
vendors=${CONFORMANCE_VENDORS:-intel amd}
runner=${CONFORMANCE_RUNNER:-}
[ -z "$runner" ] || vendors=own

for tool in apt-get dpkg-deb gcc make tar timeout; do
  if ! command -v "$tool" >/dev/null 2>&1; then
    echo "conformance: $tool is missing" >&2
    exit 2
  fi
done

fetch() {
  mkdir -p "$cache"
  (cd "$cache" && apt-get download "$package" >log 2>&1) || {
    echo "conformance: apt-get download $package failed; see $cache/log" >&2
    exit 2
  }
  rm -rf "$cache/package" "$cache/src"
  dpkg-deb -x "$cache"/"$package"_*.deb "$cache/package"
  mkdir -p "$cache/src"
  tar xf "$cache/package/usr/src/$package.tar.xz" -C "$cache/src" --strip-components=1 \
    "$package/tools" "$package/scripts" "$package/arch/x86/include" "$package/include"
  rm -rf "$cache/package" "$cache"/"$package"_*.deb
}

# The system's headers are of the same kernel version, so that the tree needs none of its own. Debian's
# update of dirty_log_test uses a macro by its newer name.
# pmu_event_filter_test asks the host's CPUID instruction whether the counters are Intel's, so that it
# skips on hosts of another vendor. Leaf 0AH of KVM_GET_SUPPORTED_CPUID, at which it looks as well,
# says so by itself: other vendors' KVMs have it empty.
counters=$selftests/x86_64/pmu_event_filter_test.c
build() {
  sed -i 's/is_intel_cpu() && check_intel_pmu_leaf/check_intel_pmu_leaf/' "$counters"
  # Their makefiles take a level above 0 for the kernel's own build and then write into OUTPUT.
  env -u MAKELEVEL -u MAKEFLAGS -u MFLAGS make -k -C "$selftests" LINUX_HDR_PATH=/usr/include/ KHDR_INCLUDES= \
    EXTRA_CFLAGS="-include /usr/include/linux/stddef.h -DTEST_ASSERT_EQ=ASSERT_EQ" \
    >"$cache/build.log" 2>&1 || echo "conformance: not all tests build; see $cache/build.log" >&2
}

[ -d "$selftests" ] || fetch
if [ ! -x "$selftests/x86_64/sync_regs_test" ] || grep -q 'is_intel_cpu() &&' "$counters"; then
  build
fi

# Scripts among the tests are left out: they need root and a kernel to configure.
names() {
  awk '/^TEST_GEN_PROGS_x86_64/ { print $3 }' "$selftests/Makefile"
}

# The reason: the test's own words, else the status.
reason() {
  line=$(grep -a -m 1 -E 'SKIP|skipping|Skipping|not supported|Requirement not met' "$1") ||
    line=$(grep -a -A 6 -m 1 'Test Assertion Failure' "$1" | grep -a -v -E 'pid=|^ *[0-9]+' |
      sed 's/^ *//' | tr '\n' ' ' | sed 's/==== Test Assertion Failure ====//') ||
    line=$(tail -n 1 "$1")
  [ "$2" != 124 ] || line="no end after $timeout s; $line"
  printf '%s' "$line" | tr -d '\000-\010\013-\037' | cut -c 1-110
}

passed=0 skipped=0 out=0 failed=0 surprises=0
log=$cache/test.log
mkdir -p "$cache/logs"
# shellcheck disable=SC2046 # one argument for each name
[ $# -gt 0 ] || set -- $(names)

# The second and the other columns of a test's line in the list.
expectation() {
  awk -v name="$1" '$1 == name { print $2 }' "$expected"
}
known() {
  awk -v name="$1" '$1 == name { $1 = $2 = ""; sub(/^ */, ""); print }' "$expected"
}

# What is changed in a test's source before it is built (see build).
edited() {
  case $1 in
    x86_64/pmu_event_filter_test)
      echo "source edited: looks at CPUID leaf 0AH alone, not at the host's vendor"
      ;;
  esac
}

# Runs a test with one vendor's processor, its output in $log; sets status.
run_with() {
  status=0 limit=$timeout
  [ "$1" != hardware_disable_test ] || limit=$((timeout * 10))
  # shellcheck disable=SC2086
  (cd "$cache" && timeout -k 5 "$limit" ${runner:-"$root/.build/release/martlet" kvm --vendor "$2" --} \
    "$selftests/$1") >"$cache/logs/$(basename "$1").$2.log" 2>&1 </dev/null || status=$?
}

# Sets result and why.
run() {
  result=skip worst=4
  for vendor in $vendors; do
    run_with "$1" "$vendor"
    case $status in
      0) [ "$result" = FAIL ] || result=pass ;;
      4) ;;
      *) result=FAIL worst=$status ;;
    esac
    case $result,$status in
      FAIL,0 | FAIL,4 | pass,*) ;;
      *) cp "$cache/logs/$(basename "$1").$vendor.log" "$log" ;;
    esac
  done
  case $result in
    pass) why=$(edited "$1") passed=$((passed + 1)) ;;
    skip) skipped=$((skipped + 1)) ;;
    FAIL) failed=$((failed + 1)) ;;
  esac
  [ "$result" != pass ] || return 0
  if [ "$(expectation "$1")" = "$(echo "$result" | tr '[:upper:]' '[:lower:]')" ]; then
    why=$(known "$1")
  else
    why="UNEXPECTED: $(reason "$log" "$worst")" surprises=$((surprises + 1))
  fi
}

printf '%-46s %-6s %s\n' test result reason
for name in "$@"; do
  if [ "$(expectation "$name")" = out ]; then
    result=out why=$(known "$name") out=$((out + 1))
  else
    run "$name"
  fi
  printf '%-46s %-6s %s\n' "$name" "$result" "$why"
done
echo "$passed passed, $skipped skipped, $out not run, $failed failed; $surprises unexpected"
[ "$surprises" = 0 ]
