# SPDX-License-Identifier: Apache-2.0
# The tables of profile-boot.sh, from symbols ("address name", in order) and samples (count, object, k or
# ".", symbol).

# Hexadecimal text of equal length compares as the numbers do.
function address(text) {
  while (length(text) < 16) text = "0" text
  return text
}

function owner(text,    low, high, middle) {
  if (text < first[1] "" || substr(text, 1, 8) != "ffffffff") return "code before the kernel's, user code"
  low = 1; high = symbols
  while (low < high) {
    middle = int((low + high + 1) / 2)
    if (first[middle] "" <= text "") low = middle; else high = middle - 1
  }
  return name[low]
}

function part(object, kind, symbol) {
  if (symbol ~ /^guest:/) return "translated code"
  if (symbol ~ /^martlet:/) return "translated code: entry, exit, look-ups"
  if (kind == "k") return "host kernel (page faults, signals, timers)"
  if (object ~ /lz4|lzma|zstd|libz/) return "decompression"
  if (symbol ~ /X86JIT10runHandler|X86JIT13findSuccessor/) return "handlers and successors for translated code"
  if (symbol ~ /6X86JIT|10X86Decoder/) return "translator and decoder"
  if (symbol ~ /BlockBuilder|BlockCache|CodePages|8Lowering/) return "blocks: decoding, finding, dropping"
  if (symbol ~ /6X86CPU/) return "interpreter, its handlers, paging"
  if (symbol ~ /3KVM|9KVMClient|11KVMLoopback|3VMM|7Devices|14InterruptChips/) return "exits, devices, monitor"
  if (symbol ~ /swift_|RefCount/) return "Swift's run time (mostly the translator's)"
  return "C library and others"
}

FNR == NR {
  split($0, fields, " ")
  first[++symbols] = address(fields[1]); name[symbols] = fields[2]
  next
}
{
  total += $1
  parts[part($2, $3, $4)] += $1
  if ($4 ~ /^guest:0x/) {
    guest += $1
    functions[owner(address(substr($4, 9)))] += $1
  }
}
END {
  printf "%d samples in %d runs\n\npart of the program\n", total, runs
  sorted = "sort -rn"
  for (p in parts) printf "%5.1f %%  %s\n", 100 * parts[p] / total, p | sorted
  close(sorted)
  printf "\nfunctions of the guest, of all time in translated code\n"
  sorted = "sort -rn | head -40"
  for (f in functions) printf "%5.1f %%  %s\n", 100 * functions[f] / guest, f | sorted
  close(sorted)
}
