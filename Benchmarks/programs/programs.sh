# shellcheck shell=bash disable=SC2016
# SPDX-License-Identifier: Apache-2.0
#
# The programs, in order: name, class, command. A command runs in bash in an empty folder; its standard
# output is what is hashed, so it must not hold times, process numbers or names of temporary files.
# $data has the input files that prepare.py made. What a server or a loop prints is checked like
# anything else: a program that computes wrongly is found.
#
# Nobody tunes on the programs of the class "hold-out".

table=()
program() { table+=("$1" "$2" "$3"); }

program gcc-O0 build 'gcc -O0 -S -o - $data/large.c'
program gcc-O2 build 'gcc -O2 -S -o - $data/large.c'
program gcc-functions build 'gcc -O1 -S -o - $data/functions.c'
program gcc-small build 'for n in 0 1 2 3 4 5 6 7 8 9; do gcc -O1 -c $data/small$n.c -o $n.o; done; cat ./*.o'
program g++-templates build 'g++ -O1 -S -o - $data/templates.cc'
program ld build 'for n in 1 2 3 4; do gcc -o out $data/objects/*.o; done; cat out'
program make build 'cp -r $data/project . && cd project && make -s && ./program'

program python-start interpreter 'for n in 1 2 3 4 5 6 7 8 9 10; do python3 -c "import json, re; print($n)"; done'
program python-nbody interpreter 'python3 $data/nbody.py 20000'
program python-json interpreter 'python3 $data/mixed.py 12'
program perl interpreter 'perl $data/words.pl $data/text.txt 4'
program awk interpreter 'gawk -f $data/words.awk $data/text.txt'
program bash interpreter 'bash $data/loop.bash 30000'
program node interpreter 'node $data/generate.js 4000'

program gzip compression 'gzip -9 -n -c $data/text.txt'
program bzip2 compression 'bzip2 -c $data/text.txt'
program xz compression 'xz -1 -T1 -c $data/text.txt'
program unxz compression 'for n in 1 2 3 4; do unxz -c $data/text.txt.xz; done'

program sha256sum crypto 'for n in 1 2 3 4 5 6 7 8; do sha256sum <$data/text.txt; done'
program openssl-digest crypto 'for n in 1 2 3; do openssl dgst -sha512 -r <$data/text.txt; openssl dgst -sha3-256 -r <$data/text.txt; done'
program openssl-keys crypto 'for n in 1 2 3 4 5 6 7 8 9 10 11 12; do openssl dgst -sha256 -sign $data/key.pem $data/small0.c | sha256sum; done'

program sort text 'for n in 1 2 3 4; do sort $data/lines.txt | sort -r; done'
program grep text 'for n in 1 2 3 4 5; do grep -E -c "(ab|cd)+[0-9]*(xy|z)" $data/text.txt; grep -c -E "([a-z])\1[aeiou]{2}" $data/lines.txt; done'
program sed text 'sed -E "s/([a-z]+)([0-9]+)/\2\1/g; /q.*z/d" $data/lines.txt'

program tar system 'for n in 1 2; do tar -C /usr/include --sort=name --mtime=@0 --owner=0 --group=0 -cf - . | cksum; done'
program find system 'find /usr/include /usr/lib/python3.11 -name "*.[hp]*" -print0 | sort -z | xargs -0 -n 50 wc -l | awk "{ s += \$1 } END { print s }"'
program dpkg system 'mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates && touch root/var/lib/dpkg/status && dpkg --root=root --force-not-root --force-all --log=/dev/null -i $data/tree.deb >/dev/null 2>&1; find root/opt -type f | sort | xargs cat | cksum'
program forks system 'for ((n = 0; n < 300; n++)); do /bin/true; done; for ((n = 0; n < 300; n++)); do (:); done; echo done'

program sqlite3 server 'sqlite3 test.db <$data/queries.sql'
program redis server 'redis-server --port 0 --unixsocket "$PWD/s" --save "" --daemonize yes >/dev/null; for ((n = 0; n < 300; n++)); do [ -S s ] && break; sleep 0.01; done; redis-cli -s s <$data/redis.txt | cksum; redis-cli -s s shutdown nosave'

program lua hold-out 'lua5.4 $data/mandel.lua 160'
program zstd hold-out 'zstd -q -9 -c $data/text.txt'
program git hold-out 'git init -q . && cp -r $data/project/. . && git add . && git -c user.name=a -c user.email=b commit -q -m one && git gc -q && git fsck 2>/dev/null && git log --stat --format=%T'
program diff hold-out 'for n in 1 2 3 4; do diff $data/lines.txt $data/lines2.txt; done; true'
program nginx hold-out 'nginx -p "$PWD" -e stderr -c $data/nginx.conf && ab -q -n 800 -c 8 http://127.0.0.1:8099/text.txt | grep -E "^(Complete|Failed|Document Length)"; kill "$(cat nginx.pid)"'
