#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the benchmark's programs, one after the other, and prints for each the line
#
#     program NAME CLASS SECONDS HASH
#
# natively and in guests alike. A program that fails has the hash "failed-STATUS".
#
# usage: runner.sh [NAME...]       without names all

set -u
export LC_ALL=C HOME=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin TZ=UTC
here=$(cd "$(dirname "$0")" && pwd)
export data=$here/data
# shellcheck source=Benchmarks/programs/programs.sh
. "$here/programs.sh"

run() {
  local name=$1 class=$2 command=$3 begin end hash status=0 folder=/tmp/run
  rm -rf "$folder" && mkdir -p "$folder" && cd "$folder" || return
  begin=${EPOCHREALTIME/./}
  # Standard output goes to a file, so that hashing is not in the time.
  bash -c "$command" >/tmp/output 2>/tmp/errors </dev/null || status=$?
  end=${EPOCHREALTIME/./}
  hash=$(md5sum </tmp/output)
  hash=${hash%% *}
  [ "$status" = 0 ] || { hash=failed-$status; sed "s/^/# $name: /" /tmp/errors | head -n 3; }
  printf 'program %s %s %d.%06d %s\n' "$name" "$class" $(((end - begin) / 1000000)) \
    $(((end - begin) % 1000000)) "$hash"
  cd / || return
}

for ((n = 0; n < ${#table[@]}; n += 3)); do
  if [ $# != 0 ]; then
    case " $* " in *" ${table[n]} "*) ;; *) continue ;; esac
  fi
  run "${table[n]}" "${table[n + 1]}" "${table[n + 2]}"
done
rm -rf /tmp/run /tmp/output /tmp/errors
