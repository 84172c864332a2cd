#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fails on comments wider than 100 columns in Swift and C, which the formatter leaves alone, and on
# scripts wider than 120.
#
# usage: Scripts/lint-width.sh

set -eu
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8

{
  find Sources Tests Benchmarks -name '*.swift' -o -name '*.[ch]' | sort |
    xargs grep -nE '^ *///?.{0,}$' | grep -E '^[^:]*:[0-9]*:.{101,}' || true
  grep -nE '.{121,}' .ci/run Scripts/*.sh Scripts/init-* Guests/*.sh || true
} | {
  if grep . >&2; then
    echo 'lint-width: wrap these lines: 100 columns for comments, 120 for scripts' >&2
    exit 1
  fi
}
