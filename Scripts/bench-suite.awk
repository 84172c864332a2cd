# SPDX-License-Identifier: Apache-2.0
#
# The suite's table. Input: lines "ENGINE KERNEL CLASS SECONDS CHECKSUM", native's among them.
# Variables: engines (names in the order of columns, native first), statistic (median or best),
# summary (a file to append "key value" lines to), prefix (of the keys). The exit status is 1 when a checksum differs
# from the native one.

{
  key = $1 SUBSEP $2
  if (!($2 in class)) { class[$2] = $3; order[++kernelCount] = $2 }
  if (!($3 in classSeen)) { classSeen[$3] = 1; classes[++classCount] = $3 }
  value[key, ++count[key]] = $4
  if ($1 == "native") expected[$2] = $5
  sum[key, count[key]] = $5
}

# The reduced time of a key; 0 where there is none.
function time(key,    n, i, j, t, v) {
  n = count[key]
  if (!n) return 0
  for (i = 1; i <= n; i++) v[i] = value[key, i] + 0
  for (i = 2; i <= n; i++)
    for (j = i; j > 1 && v[j - 1] > v[j]; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
  if (statistic == "best") t = v[1]
  else if (n % 2) t = v[(n + 1) / 2]
  else t = (v[n / 2] + v[n / 2 + 1]) / 2
  return t > 0 ? t : 0.000001
}

function verdict(engine, kernel,    n, key) {
  key = engine SUBSEP kernel
  for (n = 1; n <= count[key]; n++)
    if (sum[key, n] != expected[kernel]) {
      wrong = 1
      return "  WRONG on " engine ": " sum[key, n] ", natively " expected[kernel]
    }
  return ""
}

function note(scope, name, ratio) {
  logs[scope, name] += log(ratio)
  numbers[scope, name]++
}

function mean(scope, name) {
  return numbers[scope, name] ? exp(logs[scope, name] / numbers[scope, name]) : 0
}

function row(text, scope,    n, m) {
  printf "%-14s %-12s %10s", "", text, ""
  for (n = 2; n <= engineCount; n++) {
    m = mean(scope, engine[n])
    printf " %10s %8s", "", (m ? sprintf("%.2f", m) : "-")
    if (m) printf "%s.mean.%s.%s %.3f\n", prefix, scope, engine[n], m >> summary
  }
  if (engineCount > 2) {
    m = mean(scope, "gain")
    printf " %9s", (m ? sprintf("%.2f", m) : "-")
    if (m) printf "%s.mean.%s.gain %.3f\n", prefix, scope, m >> summary
  }
  print ""
}

END {
  engineCount = split(engines, engine, " ")
  printf "%-14s %-12s %10s", "kernel", "class", "native ms"
  for (n = 2; n <= engineCount; n++) printf " %10s %8s", engine[n] " ms", "x native"
  printf "%s\n", (engineCount > 2 ? "  x faster" : "")
  for (k = 1; k <= kernelCount; k++) {
    name = order[k]
    native = time("native" SUBSEP name)
    messages = ""
    printf "%-14s %-12s %10.2f", name, class[name], native * 1000
    printf "%s.native.%s.ms %.4f\n", prefix, name, native * 1000 >> summary
    for (n = 2; n <= engineCount; n++) {
      t = time(engine[n] SUBSEP name)
      if (!t || !native) { printf " %10s %8s", "-", "-"; continue }
      printf " %10.2f %8.2f", t * 1000, t / native
      printf "%s.%s.%s.ms %.4f\n%s.%s.%s.ratio %.3f\n", \
        prefix, engine[n], name, t * 1000, prefix, engine[n], name, t / native >> summary
      note(class[name], engine[n], t / native)
      note("all", engine[n], t / native)
      messages = messages verdict(engine[n], name)
    }
    if (engineCount > 2) {
      mine = time(engine[2] SUBSEP name)
      theirs = time(engine[3] SUBSEP name)
      if (mine && theirs) {
        printf " %9.2f", theirs / mine
        printf "%s.gain.%s %.3f\n", prefix, name, theirs / mine >> summary
        note(class[name], "gain", theirs / mine)
        note("all", "gain", theirs / mine)
      } else printf " %9s", "-"
    }
    print messages
  }
  print "Geometric means"
  for (c = 1; c <= classCount; c++) row(classes[c], classes[c])
  row("all", "all")
  if (!wrong) print "All checksums are the native ones."
  printf "%s.checksums %s\n", prefix, (wrong ? "wrong" : "right") >> summary
  exit wrong
}
