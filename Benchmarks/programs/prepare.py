# SPDX-License-Identifier: Apache-2.0
"""Makes the input files of the benchmark's programs in the folder that is its argument.

It runs with the benchmark's own python3, and draws from a generator of its own: the files are the
same on every machine.
"""

import os
import subprocess
import sys


class Random:
    """A linear congruential generator (Knuth's MMIX constants)."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % n

    def pick(self, items):
        return items[self.below(len(items))]


def write(name, text):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "w") as f:
        f.write(text)


def expression(r, variables, depth):
    if depth == 0:
        return r.pick(variables) if r.below(3) else str(r.below(1000) + 1)
    left = expression(r, variables, depth - 1)
    right = expression(r, variables, depth - 1 if r.below(2) else 0)
    return f"({left} {r.pick(['+', '-', '*', '^', '&', '|'])} {right})"


def statement(r, variables, depth):
    target = r.pick(variables)
    kind = r.below(6 if depth else 2)
    if kind < 3:
        return f"{target} = {expression(r, variables, 2)};"
    if kind == 3:
        return (f"if ({target} > {expression(r, variables, 1)}) {{ "
                f"{statement(r, variables, depth - 1)} }} else {{ {statement(r, variables, depth - 1)} }}")
    if kind == 4:
        return (f"for (unsigned i = 0; i < ({target} & 15); i++) {{ table[i] += {r.pick(variables)}; "
                f"{statement(r, variables, depth - 1)} }}")
    return (f"switch ({target} & 3) {{ case 0: {statement(r, variables, 0)} break; "
            f"case 1: {statement(r, variables, 0)} break; default: {statement(r, variables, 0)} }}")


def function(r, n, lines, callee=None):
    variables = ["a", "b", "c", "d"]
    body = "\n".join("  " + statement(r, variables, 2) for _ in range(lines))
    call = f"  a += f{callee}(b, c);\n" if callee is not None else ""
    return (f"unsigned f{n}(unsigned a, unsigned b) {{\n  unsigned c = a ^ b, d = a + {n};\n"
            f"{body}\n{call}  return a + b + c + d;\n}}\n")


HEAD = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nstatic unsigned table[16];\n"


def c_file(name, seed, functions, lines, calls=True):
    r = Random(seed)
    text = HEAD
    for n in range(functions):
        text += function(r, n, lines, n - 1 if calls and n else None)
    write(name, text)


def c_files():
    c_file("large.c", 1, 40, 22)
    c_file("functions.c", 2, 300, 2)
    for n in range(10):
        c_file(f"small{n}.c", 10 + n, 3, 5)


TEMPLATES = """#include <map>
#include <string>
#include <vector>
#include <algorithm>
#include <functional>
#include <memory>
template <int N> struct Sum { static constexpr long value = N + Sum<N - 1>::value; };
template <> struct Sum<0> { static constexpr long value = 0; };
template <typename T, int N> struct Box { T items[N]; T sum() const { T s{}; for (auto &i : items) s += i; return s; } };
"""


def templates():
    text = TEMPLATES
    for n in range(5):
        text += (f"long use{n}(std::map<std::string, std::vector<Box<long, {n + 2}>>> &m) {{\n"
                 f"  long t = Sum<{100 + n}>::value;\n"
                 "  for (auto &p : m) { std::sort(p.second.begin(), p.second.end(), [](auto &a, auto &b) "
                 "{ return a.sum() < b.sum(); });\n"
                 "    for (auto &b : p.second) t += b.sum() + p.first.size(); }\n"
                 f"  std::function<long(long)> g = [&](long x) {{ return x * {n} + t; }};\n"
                 "  auto p = std::make_shared<std::string>(std::to_string(g(t)));\n  return p->size();\n}\n")
    write("templates.cc", text)


def project():
    """A program of 24 files and a Makefile; the same as objects for the linker."""
    r = Random(3)
    count = 24
    for n in range(count):
        text = HEAD
        if n:
            text += f"unsigned f{n - 1}(unsigned, unsigned);\n"
        text += function(r, n, 6, n - 1 if n else None)
        write(f"project/file{n}.c", text)
    write("project/main.c", f"#include <stdio.h>\nunsigned f{count - 1}(unsigned, unsigned);\n"
          f"int main(void) {{ printf(\"%u\\n\", f{count - 1}(1, 2)); return 0; }}\n")
    write("project/Makefile", "objects = main.o $(patsubst %,file%.o,"
          + " ".join(map(str, range(count))) + ")\nCC = gcc\nCFLAGS = -O1\nprogram: $(objects)\n\t"
          "$(CC) -o $@ $(objects)\n")
    os.makedirs("objects", exist_ok=True)
    for n in range(200):
        c_file("object.c", 100 + n, 8, 1, calls=False)
        with open("object.c") as f:
            text = f.read().replace("unsigned f", f"unsigned o{n}_f")
        if n == 0:
            text += "int main(void) { return 0; }\n"
        write("object.c", text)
        subprocess.run(["gcc", "-O0", "-c", "object.c", "-o", f"objects/{n:03}.o"], check=True)
    os.remove("object.c")


def texts():
    r = Random(4)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = []
    for _ in range(4000):
        words.append("".join(letters[min(r.below(26), r.below(26))] for _ in range(2 + r.below(9))))
    text = []
    while sum(map(len, text)) < 3_000_000:
        line = [words[min(r.below(4000), r.below(4000))] for _ in range(8 + r.below(8))]
        text.append(" ".join(line) + ".\n")
        text.append("")
        if len(text) > 60000:
            break
    write("text.txt", "".join(text))
    lines = [f"{r.pick(words)}{r.below(100000)} {r.pick(words)}\n" for _ in range(60000)]
    write("lines.txt", "".join(lines))
    for _ in range(3000):
        lines[r.below(len(lines))] = f"{r.pick(words)} changed\n"
    write("lines2.txt", "".join(lines))
    subprocess.run("xz -3 -T1 -k -f text.txt", shell=True, check=True)


SCRIPTS = {
    "nbody.py": """import sys
def bodies():
    return [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 39.478], [4.84, -1.16, -0.10, 0.6, 2.81, -0.02, 0.037],
            [8.34, 4.12, -0.4, -1.01, 1.82, 0.008, 0.011], [12.89, -15.11, -0.22, 1.08, 0.86, -0.01, 0.0017],
            [15.37, -25.9, 0.179, 0.979, 0.594, -0.034, 0.002]]
def advance(b, dt):
    for i in range(len(b)):
        p = b[i]
        for q in b[i + 1:]:
            dx, dy, dz = p[0] - q[0], p[1] - q[1], p[2] - q[2]
            m = dt / (dx * dx + dy * dy + dz * dz) ** 1.5
            p[3] -= dx * q[6] * m; p[4] -= dy * q[6] * m; p[5] -= dz * q[6] * m
            q[3] += dx * p[6] * m; q[4] += dy * p[6] * m; q[5] += dz * p[6] * m
    for p in b:
        p[0] += dt * p[3]; p[1] += dt * p[4]; p[2] += dt * p[5]
b = bodies()
for _ in range(int(sys.argv[1])):
    advance(b, 0.001)
print(['%.6f' % v for p in b for v in p])
""",
    "mixed.py": """import json, re, sys
state = 7
def below(n):
    global state
    state = (state * 1103515245 + 12345) % 2**31
    return state % n
records = [{'id': n, 'name': 'name%d' % below(1000), 'tags': ['t%d' % below(50) for _ in range(5)],
            'value': below(10**6) / 7.0} for n in range(1500)]
total = 0
for n in range(int(sys.argv[1])):
    text = json.dumps(records)
    back = json.loads(text)
    total += len(re.findall(r'"name(\\d+)": ?|t(\\d)(\\d)', text))
    back.sort(key=lambda r: (r['name'], -r['value']))
    total += back[n]['id']
print(total, len(text))
""",
    "words.pl": """use strict; use warnings;
my ($file, $rounds) = @ARGV; my %count; my $changed = 0;
for my $round (1 .. $rounds) {
  open(my $in, '<', $file) or die;
  while (my $line = <$in>) {
    next if ($. % 4) != $round % 4;
    $changed++ while $line =~ /([a-z]+)ing\\b|\\b(un|re)([a-z]+)/g;
    $count{$_} += length for split /[^a-z]+/, $line;
  }
  close $in;
}
my $n = 0;
for my $w (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count) { print "$w $count{$w}\\n"; last if ++$n == 200; }
print "$changed\\n";
""",
    "words.awk": """{ for (n = 1; n <= NF; n++) { count[$n]++; total += length($n) }
  if (match($0, /[a-z]+tion/)) found++; gsub(/e/, "E"); bytes += length($0) }
END { for (w in count) { kinds++; sum += count[w] * length(w) } print kinds, sum, total, found, bytes }
""",
    "loop.bash": """n=0 s=0 a=()
while ((n < $1)); do
  ((s = (s * 31 + n) % 65537)); a[n % 100]=$s
  case $s in *7*) text=${text:0:40}x$n ;; *) text=$n ;; esac
  ((n += 1))
done
echo "$s ${a[*]} $text"
""",
    "generate.js": """const rounds = +process.argv[2]; let total = 0;
for (let n = 0; n < rounds; n++) {
  const f = new Function('a', 'b', `let s = ${n}; for (let i = 0; i < 50; i++) s = (s * a + b + i) % ${1000 + n}; return s;`);
  total += f(n % 7, n % 11);
}
const m = new Map();
for (let n = 0; n < 200000; n++) { const k = 'k' + (n * 7919 % 5003); m.set(k, (m.get(k) || 0) + n); }
const sorted = [...m].sort((x, y) => x[1] - y[1] || (x[0] < y[0] ? -1 : 1));
console.log(total, sorted.length, JSON.stringify(sorted.slice(0, 20)));
""",
    "mandel.lua": """local n = tonumber(arg[1]); local total = 0
for y = 0, n - 1 do
  for x = 0, n - 1 do
    local cr, ci, zr, zi, k = 2 * x / n - 1.5, 2 * y / n - 1, 0, 0, 0
    while k < 60 and zr * zr + zi * zi < 4 do zr, zi = zr * zr - zi * zi + cr, 2 * zr * zi + ci; k = k + 1 end
    total = total + k
  end
end
local t = {}
for i = 1, 60000 do t[i] = (i * 7919) % 60013 end
table.sort(t)
print(total, t[1], t[60000], #table.concat(t, ','))
""",
    "nginx.conf": """worker_processes 1; pid nginx.pid; error_log stderr crit;
events { worker_connections 64; }
http { access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  server { listen 127.0.0.1:8099; location / { root DATA; } } }
""",
}


def scripts():
    for name, text in SCRIPTS.items():
        write(name, text.replace("DATA", os.getcwd()))


def databases():
    r = Random(5)
    out = ["pragma journal_mode=off;", "create table t(a integer primary key, b integer, c text);", "begin;"]
    for n in range(8000):
        out.append(f"insert into t values({n}, {r.below(500)}, 'text {r.below(100000)}');")
    out += ["commit;", "create index i on t(b);",
            "select b, count(*), max(c) from t group by b order by 2 desc, b limit 20;",
            "select count(*) from t x join t y on x.b = y.b where x.a < 400;",
            "update t set c = c || 'x' where b % 3 = 0;", "delete from t where c like '%99%';",
            "select sum(length(c)), count(*) from t;",
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < 60000) select sum(i * i % 7) from n;"]
    write("queries.sql", "\n".join(out) + "\n")
    out = []
    for n in range(4000):
        out.append(f"set key{r.below(1000)} value{n}")
        out.append(f"lpush list{r.below(20)} {n}")
        out.append(f"get key{r.below(1000)}")
        out.append(f"zadd z {r.below(10000)} m{r.below(500)}")
    out.append("zrange z 0 -1")
    write("redis.txt", "\n".join(out) + "\n")


def package():
    """A package of 400 files in 40 folders, for dpkg."""
    r = Random(6)
    for n in range(400):
        write(f"tree/opt/folder{n % 40}/file{n}", "".join(chr(97 + r.below(26)) for _ in range(2000)))
    write("tree/DEBIAN/control", "Package: tree\nVersion: 1\nArchitecture: all\n"
          "Maintainer: nobody <nobody@example.org>\nDescription: files\n")
    subprocess.run("dpkg-deb --root-owner-group -Zgzip -b tree tree.deb >/dev/null && rm -r tree", shell=True,
                   check=True)


def key():
    subprocess.run("openssl genrsa -out key.pem 2048 2>/dev/null", shell=True, check=True)


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    os.chdir(sys.argv[1])
    for step in (c_files, templates, project, texts, scripts, databases, package, key):
        step()
