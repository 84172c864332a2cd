#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Lists the lines of Sources whose checks the optimizer has left in the release build: what can trap as
# far as the compiler can see, subscripts included. Scripts/lint-traps.sh looks at text and has to be
# told of what is bounded; this is what to look at first when its list is gone through. Nothing depends
# on it.
#
#   swift build -c release && Scripts/list-traps.sh [TARGET ...]     without targets: all

cd "$(dirname "$0")/.." || exit 1
build=.build/release
tools=$(dirname "$(readlink -f "$(command -v swift)")")
image=$(mktemp) || exit 1
trap 'rm -f "$image"' EXIT

# Objects of files that are gone may still lie in the folder.
objects=
# shellcheck disable=SC2046 # one argument for each target
[ $# -gt 0 ] || set -- $(ls Sources)
for target; do
  # shellcheck disable=SC2044 # no file of this repository has a space in its name
  for source in $(find "Sources/$target" -name '*.swift'); do
    object=$build/$target.build/$(basename "$source").o
    [ -f "$object" ] && objects="$objects $object"
  done
done
[ -n "$objects" ] || { echo "no objects in $build; build first" >&2; exit 1; }

# Only for their addresses: what the targets need of each other and of libraries may be missing.
"$tools/ld.lld" -shared --unresolved-symbols=ignore-all -z notext --allow-multiple-definition \
  -o "$image" $objects "$build"/CHost.build/*.o || exit 1
"$tools/llvm-objdump" -d --no-show-raw-insn -j .text "$image" |
  awk '$2 ~ /^ud[12]/ || $2 ~ /^call/ && /assertionFailure/ { sub(/:/, "", $1); print "0x" $1 }' |
  "$tools/llvm-symbolizer" --inlines -e "$image" |
  awk 'BEGIN { RS = ""; FS = "\n" }
    {
      # A trap is a function of its own, inlined into the line that has it.
      kind = "ends the program"
      for (n = 1; n < NF; n += 2) {
        if ($n ~ /^Swift runtime failure: /) kind = substr($n, 24)
        place = $(n + 1)
        if (place !~ /\/Sources\// || place ~ /:0:/) continue
        sub(/^.*\/Sources\//, "Sources/", place)
        split(place, parts, ":")
        print parts[1] ":" parts[2] ": " kind
        next
      }
    }' | sort -u -t: -k1,1 -k2,2n -k3
