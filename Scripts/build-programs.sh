#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes .guest/programs/root, a small root of Debian's packages with the programs of the benchmark
# (Benchmarks/programs), unpacked and not installed, and .guest/programs/initramfs.cpio with the same
# contents. Needs apt, and root or unprivileged user namespaces. What is up to date is not made again.
#
# usage: Scripts/build-programs.sh

set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."
source=Benchmarks/programs folder=.guest/programs
root=$folder/root image=$folder/initramfs.cpio

packages=(gcc g++ make python3 perl lua5.4 gawk nodejs gzip bzip2 xz-utils zstd openssl sqlite3
  redis-server nginx-light apache2-utils git tar findutils grep sed coreutils bash dpkg binutils
  diffutils libc-bin)

fail() {
  echo "build-programs: $*" >&2
  exit 1
}

# The packages with all that they need, as on a machine without any.
download() {
  local options=(-o "Dir::State::status=/dev/null") lists=$PWD/.guest/apt
  mkdir -p "$folder/packages"
  if ! apt-get "${options[@]}" install -y --no-install-recommends --print-uris "${packages[@]}" \
    >"$folder/uris" 2>/dev/null; then
    mkdir -p "$lists/lists/partial" "$lists/cache/archives/partial"
    options+=(-o "Dir::State::Lists=$lists/lists" -o "Dir::Cache=$lists/cache"
      -o "APT::Sandbox::User=$(id -un)")
    apt-get "${options[@]}" update >"$folder/log" 2>&1 || :
    apt-get "${options[@]}" install -y --no-install-recommends --print-uris "${packages[@]}" \
      >"$folder/uris" 2>>"$folder/log" ||
      fail "apt knows not all of the packages: is there a network? $folder/log has its words"
  fi
  local names
  names=$(sed -n "s/^'[^']*' \([^_]*\)_.*/\1/p" "$folder/uris")
  # shellcheck disable=SC2086
  (cd "$folder/packages" && apt-get "${options[@]}" download $names >../log 2>&1) ||
    fail "apt-get download failed; $folder/log has its words"
}

unpack() {
  local package link
  rm -rf "$root" && mkdir -p "$root"
  # Debian's merged /usr.
  mkdir -p "$root/usr"
  for link in bin sbin lib lib64; do
    mkdir -p "$root/usr/$link"
    ln -s "usr/$link" "$root/$link"
  done
  for package in "$folder"/packages/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -C "$root" -x --keep-directory-symlink --no-same-owner
  done
  # What the benchmark does not read.
  rm -rf "$root"/usr/share/{doc,man,locale,info,lintian,bash-completion,zoneinfo} "$root"/usr/share/i18n
  rm -rf "$root"/usr/lib/gcc/x86_64-linux-gnu/12/lib?san* "$root"/usr/lib/x86_64-linux-gnu/lib?san* \
    "$root"/usr/lib/gcc/x86_64-linux-gnu/12/{lto1,lto-wrapper} "$root"/usr/bin/*lto-dump* \
    "$root"/usr/lib/x86_64-linux-gnu/{gconv,dri} "$root"/usr/share/{icons,fonts}
  ln -sf gawk "$root/usr/bin/awk"
  ln -sf bash "$root/usr/bin/sh"
  cp .guest/busybox "$root/bin/busybox"
  printf 'root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
  mkdir -p "$root"/{proc,sys,dev,tmp,programs} "$root/var/lib/nginx"
}

# usage: Scripts/build-programs.sh enter COMMAND...   in the root, with /tmp in memory
enter() {
  # shellcheck disable=SC2016
  Scripts/enter-root.sh "$root" "$@"
}

prepare() {
  cp "$source"/* "$root/programs/"
  enter /bin/bash -c 'ldconfig 2>/dev/null; cd /programs && python3 prepare.py data' ||
    fail "the input files could not be made"
}

pack() {
  ln -sf programs/init.sh "$root/init"
  (cd "$root" && find . -mindepth 1 | sort | ../../busybox cpio -o -H newc) >"$image.new" 2>/dev/null ||
    fail "the initial RAM disk could not be written"
  mv "$image.new" "$image"
}

[ -s .guest/busybox ] || Scripts/fetch-guest.sh --cloud
stamp=$(cat "$source"/* Scripts/build-programs.sh | cksum)
if [ -s "$image" ] && [ "$(cat "$folder/stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi
rm -f "$folder/stamp"
mkdir -p "$folder"
echo "build-programs: packages, input files, initial RAM disk"
[ -n "$(ls "$folder/packages" 2>/dev/null)" ] || download
unpack
prepare
pack
echo "$stamp" >"$folder/stamp"
