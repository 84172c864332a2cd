#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The init of the guests of the benchmark's programs. On the kernel's command line:
#
#   programs.only=gcc-O2,perl       these alone
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t tmpfs tmpfs /tmp
/bin/busybox ip link set lo up
/bin/busybox ip address add 127.0.0.1/8 dev lo 2>/dev/null
only=
for word in $(</proc/cmdline); do
  case $word in programs.only=*) only=${word#*=} ;; esac
done
echo "PROGRAMS-BEGIN"
# shellcheck disable=SC2086
/programs/runner.sh ${only//,/ }
echo "PROGRAMS-END"
/bin/busybox poweroff -f
