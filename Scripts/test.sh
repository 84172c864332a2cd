#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the built tests and sums up what was skipped, with reasons, and what failed, with the first lines
# of each failure; the last line is the test runner's.
#
# usage: Scripts/test.sh COMMAND...      the test runner's, such as: swift test --skip-build
#
#   MARTLET_EXPECTED_SKIPS   a file of expected reasons, one regular expression a line ("#" begins a
#                            comment): a skip for another reason makes the run fail
#
# A test whose trait does not let it run is in the runner's output; parts of tests, and programs that do
# without a test, append lines "what: reason" to the file that MARTLET_SKIPS names.

set -uo pipefail
export LC_ALL=C.UTF-8
cd "$(dirname "$0")/.." || exit 1
directory=.build
mkdir -p "$directory"
log=$directory/test.log
export MARTLET_SKIPS=$PWD/$directory/skips.txt
# What ran before the tests may have begun it.
[ -n "${MARTLET_KEEP_SKIPS:-}" ] || : >"$MARTLET_SKIPS"

# The closing line waits for the sum.
"$@" 2>&1 | tee "$log" | grep --line-buffered -vE '^. Test run with [0-9]+ tests'
status=${PIPESTATUS[0]}
closing=$(grep -E '^. Test run with [0-9]+ tests' "$log" | tail -n 1)

# "➜ Test name() skipped: "reason"", and "➜ Suite Name skipped: ..." for all of a suite.
sed -nE 's/^. ((Test|Suite) .*) skipped(: "(.*)")?\.?$/\1: \4/p' "$log" >>"$MARTLET_SKIPS"

# Behind the first ": ", as names have colons, too.
reasons() {
  awk '{ n = index($0, ": "); r = n ? substr($0, n + 2) : ""; print r == "" ? "no reason" : r }' \
    "$MARTLET_SKIPS"
}
count=$(wc -l <"$MARTLET_SKIPS")
echo "skipped: $count"
reasons | sort | uniq -c | sort -rn

if [ -n "${MARTLET_EXPECTED_SKIPS:-}" ]; then
  expected=$(grep -vE '^(#|$)' "$MARTLET_EXPECTED_SKIPS")
  surprises=$(reasons | sort -u | grep -vE -f <(printf '%s\n' "$expected"))
  if [ -n "$surprises" ]; then
    printf 'skipped, and not expected to be here:\n%s\n' "$surprises"
    [ "$status" != 0 ] || status=1
  fi
fi
# Once more where it is found: a run prints thousands of lines.
awk '
  /^✘ Test run / { show = 0; next }
  /^✘ / { show = 25 }
  /^(◇|✔|➜) / { show = 0 }
  show > 0 { print "  " substr($0, 1, 300); show-- }
' "$log" >"$directory/failures.txt"
if [ -s "$directory/failures.txt" ]; then
  echo "failed:"
  head -n 200 "$directory/failures.txt"
fi
[ -z "$closing" ] || echo "$closing"
exit "$status"
