# SPDX-License-Identifier: Apache-2.0
# What gdb does at QEMU's stub; @function@ is a system call that the guest makes all the time.
set pagination off
set confirm off

hbreak *@function@
continue
printf "hardware: %d\n", $rip == @function@
delete

# The function's first instructions push to its stack.
awatch -location *(unsigned long *)($rsp - 8)
commands
silent
printf "watch: 1\n"
end
continue
delete

break *@function@
continue
printf "software: %d\n", $rip == @function@
continue
printf "again: %d\n", $rip == @function@
stepi
printf "step: %d\n", $rip > @function@ && $rip < @function@ + 16

set $before = $r15
set $r15 = 0x123456789abcdef0
maintenance flush register-cache
printf "written: %d\n", $r15 == 0x123456789abcdef0
set $r15 = $before
delete
detach
