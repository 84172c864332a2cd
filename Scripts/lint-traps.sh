#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Lists the trapping operators and conversions of the folders in which numbers are a guest's: + - * /
# %, negation, abs, and integer conversions without a label; of the translator's emission those alone
# that take an immediate or a displacement. A line that needs none of them wraps or truncates (&+,
# truncatingIfNeeded). Any other stands in Scripts/lint-traps.txt, because somebody has seen that its
# numbers are bounded. Lines are compared as text: they may move, but a changed one is looked at again.
#
#   Scripts/lint-traps.sh            fails on lines that are not in the list, and on entries without a line
#   Scripts/lint-traps.sh --list     all such lines, for the list

cd "$(dirname "$0")/.." || exit 1
list=Scripts/lint-traps.txt
found=$(mktemp) || exit 1
known=$(mktemp) || exit 1
trap 'rm -f "$found" "$known"' EXIT

find Sources/X86JIT/Analysis Sources/X86JIT/Emission \
  Sources/X86JIT/Assembler Sources/X86JIT/Runtime Sources/X86Decoder Sources/Devices \
  Sources/InterruptChips Sources/KVM/Exits Sources/KVM/Interrupts Sources/KVM/MSR \
  Sources/KVM/Performance Sources/KVM/Time -name '*.swift' ! -path '*/Opcodes/*' \
  ! -name 'OpcodeTable*' ! -name 'Disassembler*' |
  sort | xargs awk '
    {
      code = $0
      sub(/\/\/.*$/, "", code)
      gsub(/"[^"]*"/, "\"\"", code)
      gsub(/@[a-z]+\([^)]*\)/, "", code)
      # Counts of what is in memory, and sizes of types.
      gsub(/(count|Count|last|length|index) [-+] [0-9]+/, "count", code)
      gsub(/[-+] [0-9]+\.\.\./, "", code)
      # Conversions of constants and of bits that a mask leaves.
      gsub(/U?Int(8|16|32|64)?\([A-Z][A-Za-z0-9_.]*(\([^()]*\))?(\.[a-z][A-Za-z]*)*\)/, "constant", code)
      gsub(/U?Int(8|16|32|64)?\((truncatingIfNeeded|bitPattern|clamping|exactly):/, "convert(", code)
      gsub(/U?Int(8|16|32|64)?\.(max|min)/, "constant", code)
      gsub(/convenience|unsafeBitCast/, "", code)
      if (FILENAME ~ /Emission|Assembler|Runtime/ && code !~ /\.(immediate2?|displacement)[^:A-Za-z]/) next
      if (code ~ /[^&.<>=] [-+*\/%] [^=]/ || code ~ /[^&|^<>=!~][-+*\/%]= / || code ~ /(^|[^a-zA-Z])abs\(/ ||
          code ~ /[(,=:?] ?-[a-z(]/ || code ~ /(^|[^A-Za-z.])U?Int(8|16|32|64)?\([^)]/) {
        text = $0
        gsub(/^ +| +$/, "", text)
        print FILENAME ": " text
      }
    }' | LC_ALL=C sort -u >"$found"

if [ "$1" = --list ]; then
  cat "$found"
  exit
fi
grep -v -e '^#' -e '^$' "$list" | LC_ALL=C sort -u >"$known"
new=$(LC_ALL=C comm -23 "$found" "$known")
old=$(LC_ALL=C comm -13 "$found" "$known")
if [ -n "$new" ]; then
  echo "Trapping operators or conversions that nobody has looked at ($0 says what to do):"
  echo "$new"
fi
if [ -n "$old" ]; then
  echo "Lines of $list that are not in the sources any more:"
  echo "$old"
fi
[ -z "$new$old" ]
