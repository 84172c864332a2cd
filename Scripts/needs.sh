#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Checks for the programs that the tests run and names the Debian packages of those that are
# missing. With --install it installs them (as root).
#
# usage: Scripts/needs.sh [--install]

set -eu

missing=
need() {
  command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need swift swift
need objdump binutils
need cc gcc
need xz xz-utils
need gzip gzip
need lz4 lz4
need zstd zstd
ls /usr/lib/*/libseccomp.so.2 /usr/lib*/libseccomp.so.2 /lib*/libseccomp.so.2 2>/dev/null |
  grep -q . || missing="$missing libseccomp2"

case " $missing " in
  *" swift "*)
    echo "needs: swift is missing: install Swift $(cat "$(dirname "$0")/../.swift-version")" \
      "from swift.org" >&2
    exit 1
    ;;
esac
[ -z "$missing" ] && exit 0
if [ "${1:-}" = --install ]; then
  apt-get update >/dev/null && apt-get install -y --no-install-recommends $missing >/dev/null
  exit
fi
echo "needs: programs are missing: apt-get install$missing" >&2
exit 1
