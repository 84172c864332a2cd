#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs a command in a folder as its root, with /proc, /dev and an empty /tmp in memory, in a mount
# namespace of its own: nothing of it stays mounted. Without root it takes a user namespace.
#
# usage: Scripts/enter-root.sh FOLDER COMMAND...

set -eu
[ $# -ge 2 ] || {
  echo "usage: Scripts/enter-root.sh FOLDER COMMAND..." >&2
  exit 2
}
user=
[ "$(id -u)" = 0 ] || user='--user --map-root-user'
# shellcheck disable=SC2016,SC2086
exec unshare $user --mount --pid --fork sh -c '
  set -e
  root=$1
  shift
  mount --rbind /dev "$root/dev"
  mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
  mount -t tmpfs tmpfs "$root/tmp"
  exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"' sh "$@"
