#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Lists what may trap in the folders in which numbers are a guest's, a client's or a file's: + - * / %,
# negation, abs, integer conversions without a label, ranges with an end that is no constant, forced
# unwrapping, and calls that end the program; of the translator's emission those alone that take an
# immediate or a displacement. Subscripts are not among them: whoever writes one looks at its bounds.
# A line that needs none of these wraps or truncates (&+, truncatingIfNeeded). Any other stands in
# Scripts/lint-traps.txt, because somebody has seen that its numbers are bounded. Lines are compared as
# text, without the word `unsafe`: they may move, but a changed one is looked at again.
#
#   Scripts/lint-traps.sh            fails on lines that are not in the list, and on entries without a line
#   Scripts/lint-traps.sh --list     all such lines, for the list

cd "$(dirname "$0")/.." || exit 1
list=Scripts/lint-traps.txt
found=$(mktemp) || exit 1
known=$(mktemp) || exit 1
trap 'rm -f "$found" "$known"' EXIT

find Sources/Host Sources/X86 Sources/X86Decoder Sources/X86CPU Sources/X86JIT/Analysis \
  Sources/X86JIT/Assembler Sources/X86JIT/Emission Sources/X86JIT/Runtime Sources/X86JIT/Store \
  Sources/InterruptChips Sources/ClientMemory Sources/EntryDoctor \
  Sources/KVM Sources/KVMClient Sources/KVMLoopback Sources/KVMPreload Sources/Devices \
  Sources/GuestMemory Sources/LinuxBoot Sources/VMM Sources/martlet -name '*.swift' \
  ! -path '*/Opcodes/*' ! -name 'OpcodeTable*' ! -name 'Disassembler*' |
  sort | xargs awk '
    {
      code = $0
      gsub(/unsafe /, "", code)
      sub(/\/\/.*$/, "", code)
      gsub(/"[^"]*"/, "\"\"", code)
      gsub(/@[a-z]+\([^)]*\)/, "", code)
      # Text put together, and floating point.
      gsub(/ \+ ""/, "", code)
      gsub(/"" \+ /, "", code)
      if (code ~ /Double/ && code !~ /Int(8|16|32|64)?\(/) next
      # Counts of what is in memory, and sizes of types.
      gsub(/(count|Count|last|length|index) [-+] [0-9]+/, "count", code)
      gsub(/[-+] [0-9]+\.\.\./, "", code)
      # Constants, and conversions of them and of bits that a mask leaves.
      gsub(/\.offset\(of: [^)]*\)!/, "constant", code)
      gsub(/[A-Z][A-Za-z0-9.]*\.\.[.<][A-Z][A-Za-z0-9.]*/, "constant", code)
      gsub(/U?Int8\(ascii: ""\)/, "constant", code)
      gsub(/U?Int(8|16|32|64)?\([^()|+^*\/%-]* & ([0-9]|[1-9][0-9]|0x[0-7]?[0-9A-F])\)/, "constant", code)
      gsub(/U?Int(8|16|32|64)?\([A-Z][A-Za-z0-9_.]*(\([^()]*\))?(\.[a-z][A-Za-z]*)*\)/, "constant", code)
      gsub(/U?Int(8|16|32|64)?\((truncatingIfNeeded|bitPattern|clamping|exactly):/, "convert(", code)
      gsub(/U?Int(8|16|32|64)?\.(max|min)/, "constant", code)
      gsub(/convenience|unsafeBitCast/, "", code)
      if (FILENAME ~ /Emission|Assembler|Runtime/ && code !~ /\.(immediate2?|displacement)[^:A-Za-z]/) next
      if (code ~ /[^&.<>=] [-+*\/%] [^=]/ || code ~ /[^&|^<>=!~][-+*\/%]= / || code ~ /(^|[^a-zA-Z])abs\(/ ||
          code ~ /[(,=:?] ?-[a-z(]/ || code ~ /(fatalError|precondition|preconditionFailure|Character)\(/ ||
          code ~ /(try|as)! / || code ~ /[])A-Za-z0-9]!([^=]|$)/ ||
          code ~ /[])A-Za-z]\.\.[.<][^].) ]/ || code ~ /(^|[^A-Za-z.])U?Int(8|16|32|64)?\([^)]/) {
        text = $0
        gsub(/^ +| +$/, "", text)
        gsub(/unsafe /, "", text)
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
  echo "Operators, conversions and ranges that may trap, and that nobody has looked at ($0 says what to do):"
  echo "$new"
fi
if [ -n "$old" ]; then
  echo "Lines of $list that are not in the sources any more:"
  echo "$old"
fi
[ -z "$new$old" ]
