# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What qemu-matrix.sh is made of: QEMU on the KVM under test, its monitor by a pipe, waiting for
# lines of its console, and the table. A test is a function that returns 0 if it passed; what it
# says in $note stands in the table.

fail() {
  echo "qemu-matrix: $*" >&2
  exit 2
}

# For a row: options of the accelerator, and what a restart does.
accelerator='' ending=()

# Every QEMU that a test started and that still runs.
machines=()

# start NAME ARGUMENT...: QEMU with its console in $work/NAME.log and its monitor (QMP) at the pipes
# $work/NAME.in and $work/NAME.out, open at $monitor_in and $monitor_out.
start() {
  local name=$1
  shift
  rm -f "$work/$name".{in,out,log}
  mkfifo "$work/$name.in" "$work/$name.out"
  : >"$work/$name.log"
  "${launcher[@]}" "$qemu" -accel "kvm$accelerator" -m 512M -nodefaults -display none "${ending[@]}" \
    -chardev "file,id=console,path=$work/$name.log" -serial chardev:console \
    -chardev "pipe,id=monitor,path=$work/$name" -mon monitor,mode=control "$@" \
    </dev/null >"$work/$name.messages" 2>&1 &
  machine=$!
  machines+=("$machine")
  # Both ends stay open, so that nobody waits for a reader or a writer.
  exec {monitor_in}<>"$work/$name.in" {monitor_out}<>"$work/$name.out"
  printf '{"execute": "qmp_capabilities"}\n' >&"$monitor_in"
}

# monitor SECONDS COMMAND [IN OUT]: a command of the human monitor; its answer is in $answer.
monitor() {
  local line='' deadline=$((SECONDS + $1 * patience)) in=${3:-$monitor_in} out=${4:-$monitor_out}
  printf '{"execute": "human-monitor-command", "id": "%s",
    "arguments": {"command-line": "%s"}}\n' "$2" "$2" >&"$in"
  while [ $SECONDS -lt $deadline ]; do
    read -r -t 1 -u "$out" line || continue
    case $line in
      *'"id": "'"$2"'"'*)
        answer=$line
        case $answer in
          *'"return": "Error'* | *'"error":'*) note="$2: $answer" && return 1 ;;
        esac
        return 0
        ;;
    esac
  done
  note="$2: the monitor does not answer"
  return 1
}

# finish [PID]: ends a QEMU.
finish() {
  kill -KILL "${1:-$machine}" 2>/dev/null
  wait "${1:-$machine}" 2>/dev/null
  return 0
}

finish_all() {
  local pid
  for pid in "${machines[@]}"; do finish "$pid"; done
  machines=()
}

# await SECONDS FILE PATTERN [PID]: until the pattern is in the file, or the process is no more.
await() {
  local deadline=$((SECONDS + $1 * patience)) pid=${4:-$machine}
  until grep -aqE -- "$3" "$2"; do
    if ! kill -0 "$pid" 2>/dev/null; then
      grep -aqE -- "$3" "$2" && return 0
      note="QEMU ended before \"$3\": $(tail -n 1 "$work"/*.messages 2>/dev/null | tail -n 1)"
      return 1
    fi
    if [ $SECONDS -ge $deadline ]; then
      note="nothing like \"$3\" in $(($1 * patience)) s"
      return 1
    fi
    sleep 0.05
  done
}

# exited SECONDS [PID]: QEMU ends by itself with status 0.
exited() {
  local deadline=$((SECONDS + $1 * patience)) pid=${2:-$machine}
  while kill -0 "$pid" 2>/dev/null; do
    if [ $SECONDS -ge $deadline ]; then
      note="QEMU does not end"
      return 1
    fi
    sleep 0.05
  done
  wait "$pid" && return 0
  note="QEMU ended with status $?"
  return 1
}

# The value that the guest printed as $1.
printed() { tr -d '\r' <"$work/$2.log" | sed -n "s/^MATRIX $1 //p" | tail -n 1; }

# The number that a counting guest has come to.
counted() {
  tr -d '\r' <"$work/$1.log" |
    sed -n 's/^MATRIX \([0-9]*\) [0-9a-f]\{64\}$/\1/p' | tail -n 1
}

# await_count SECONDS NAME NUMBER [PID]
await_count() {
  local deadline=$((SECONDS + $1 * patience))
  while [ "$(printf '0%s' "$(counted "$2")")" -lt "$3" ]; do
    if [ $SECONDS -ge $deadline ] || ! kill -0 "${4:-$machine}" 2>/dev/null; then
      note="the guest counted to $(counted "$2"), not $3"
      return 1
    fi
    sleep 0.1
  done
}

lines() { grep -ac "$2" "$work/$1.log"; }

# await_lines SECONDS NAME PATTERN COUNT: so many lines with the pattern.
await_lines() {
  local deadline=$((SECONDS + $1 * patience))
  until [ "$(lines "$2" "$3")" -ge "$4" ]; do
    if [ $SECONDS -ge $deadline ]; then
      note="\"$3\" came $(lines "$2" "$3") times, not $4"
      return 1
    fi
    sleep 0.1
  done
}

# chain_holds FILE...: the lines that counting guests printed are, put together, numbers with the
# right hashes, whose order breaks where a machine was loaded alone; nothing was corrupt.
chain_holds() {
  local number hash expected=start last=0
  if grep -aq "MATRIX corrupt\|Kernel panic\|BUG:" "$@"; then
    note="the guest found corrupt memory or crashed"
    return 1
  fi
  declare -A hashes=()
  while read -r number hash; do
    if [ -n "${hashes[$number]:-}" ]; then
      [ "${hashes[$number]}" = "$hash" ] || { note="another hash at $number" && return 1; }
    elif [ "$number" -eq $((last + 1)) ]; then
      expected=$(echo "$expected $number" | sha256sum)
      expected=${expected%% *}
      [ "$expected" = "$hash" ] || { note="wrong hash at $number" && return 1; }
      hashes[$number]=$hash
      last=$number
    else
      note="$number after $last"
      return 1
    fi
  done < <(cat "$@" | tr -d '\r' | sed -n 's/^MATRIX \([0-9]* [0-9a-f]\{64\}\)$/\1/p')
  note="$last hashes"
}

# A port of this machine that nobody listens at.
free_port() {
  local port
  for port in $(seq $((20000 + RANDOM % 20000)) 65000); do
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# The table.

passed=0 failed=0 known=0

row() {
  printf '%-42s %-6s %7s %7s  %s\n' "$1" "$2" "$3" "$4" "$5"
}

# Tenths of a second of processor time that ended children took, in $spent. (A subshell's
# children are not ours.)
processor_time() {
  times >"$work/times"
  spent=$(awk 'NR == 2 {
    for (i = 1; i <= 2; i++) { split($i, part, "[ms]"); sum += part[1] * 60 + part[2] }
    printf "%d", sum * 10
  }' "$work/times")
}

# check NAME FUNCTION ARGUMENT...: a row for each repetition.
check() {
  local time
  [[ $1 =~ $only ]] || return 0
  for ((time = 0; time < repeat; time++)); do check_once "$@"; done
}

check_once() {
  local name=$1 begin before wall cpu
  shift
  note='' accelerator='' ending=(-no-reboot)
  begin=$(date +%s%N)
  processor_time
  before=$spent
  if "$@"; then
    result=pass
    passed=$((passed + 1))
  elif grep -aqs "KVM does not support userspace APIC" "$work"/*.messages; then
    result=known
    known=$((known + 1))
    note="newer QEMUs refuse this"
  else
    result=FAIL
    failed=$((failed + 1))
    keep "$name"
  fi
  finish_all
  wall=$((($(date +%s%N) - begin) / 100000000))
  processor_time
  cpu=$((spent - before))
  row "$name" "$result" "$((wall / 10)).$((wall % 10))" "$((cpu / 10)).$((cpu % 10))" "$note"
  rm -f "$work"/*.{log,in,out,messages,img,qcow2,sock}
}

# What a failed test wrote.
keep() {
  local to=.build/qemu-matrix/${1//[^A-Za-z0-9.=-]/_}
  mkdir -p "$to"
  cp "$work"/*.log "$work"/*.messages "$to" 2>/dev/null
  note="$note (see $to)"
}
