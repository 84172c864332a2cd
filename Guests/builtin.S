# SPDX-License-Identifier: Apache-2.0
#
# The guest that `martlet run` starts when it is given no kernel. It goes the way that every PC
# operating system goes, and says on the serial line how far it came:
#
#     real mode -> protected mode -> long mode with paging -> a page fault, handled ->
#     timer interrupts through 8259 and 8254, waited for with HLT -> power off
#
# Loaded at 0x8000, started in real mode at 0000:8000. Memory that it uses besides: page tables at
# 0x10000 to 0x13FFF, IDT at 0x14000, stack below 0x20000. `make guests` assembles it into
# Sources/VMM/BuiltinGuest/BuiltInGuestImage.swift.

        .set    COM1, 0x3F8
        .set    PM1_CONTROL, 0x604
        .set    POWER_OFF, 0x2000 | SLEEP_TYPE << 10
        .set    TICKS, 10
        .set    FAULT_ADDRESS, 0x40000000       # in the second GiB, which is not mapped at first

        .code16
        .globl  start
start:
        cli
        cld
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7000, %sp
        mov     $message_real, %si
1:      lodsb
        test    %al, %al
        jz      2f
        call    put16
        jmp     1b
2:      lgdtl   gdt_pointer
        mov     %cr0, %eax
        or      $1, %eax
        mov     %eax, %cr0
        ljmpl   $0x08, $protected

put16:  mov     %al, %ah
        mov     $(COM1 + 5), %dx
1:      in      %dx, %al
        test    $0x20, %al
        jz      1b
        mov     $COM1, %dx
        mov     %ah, %al
        out     %al, %dx
        ret

        .code32
protected:
        mov     $0x10, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x20000, %esp
        mov     $message_protected, %esi
        call    print32

        # Page tables: the first GiB, as 2 MiB pages mapped to themselves.
        mov     $0x10000, %edi
        xor     %eax, %eax
        mov     $0x1000, %ecx
        rep stosl
        movl    $0x11003, 0x10000
        movl    $0x12003, 0x11000
        mov     $0x12000, %edi
        mov     $0x83, %eax
        mov     $512, %ecx
1:      mov     %eax, (%edi)
        add     $0x200000, %eax
        add     $8, %edi
        loop    1b

        mov     %cr4, %eax
        or      $0x20, %eax             # PAE
        mov     %eax, %cr4
        mov     $0x10000, %eax
        mov     %eax, %cr3
        mov     $0xC0000080, %ecx       # EFER.LME
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        ljmp    $0x18, $long_mode

print32:
        lodsb
        test    %al, %al
        jz      2f
        mov     %al, %ah
        mov     $(COM1 + 5), %dx
1:      in      %dx, %al
        test    $0x20, %al
        jz      1b
        mov     $COM1, %dx
        mov     %ah, %al
        out     %al, %dx
        jmp     print32
2:      ret

        .code64
long_mode:
        lea     message_long(%rip), %rsi
        call    print
        lidt    idt_pointer(%rip)
        mov     $14, %ecx
        lea     page_fault(%rip), %rax
        call    set_gate
        mov     $0x20, %ecx
        lea     timer(%rip), %rax
        call    set_gate

        # A page fault whose handler maps the page.
        mov     $FAULT_ADDRESS, %rbx
        movq    $0x1234, (%rbx)
        cmpq    $0x1234, (%rbx)
        jne     failed
        lea     message_fault(%rip), %rsi
        call    print

        # 8259 pair: vectors from 0x20, only IRQ 0 open. 8254: channel 0 at 100 Hz.
        lea     chip_setup(%rip), %rsi
        mov     $(chip_setup_end - chip_setup) / 2, %ecx
1:      movzbl  (%rsi), %edx
        mov     1(%rsi), %al
        out     %al, %dx
        add     $2, %rsi
        loop    1b
        sti
1:      hlt
        cmpl    $TICKS, ticks(%rip)
        jb      1b
        cli
        lea     message_end(%rip), %rsi
        call    print
        mov     $PM1_CONTROL, %dx
        mov     $POWER_OFF, %ax
        out     %ax, %dx
1:      hlt                             # the machine is on its way out
        jmp     1b
failed: lea     message_failed(%rip), %rsi
        call    print
        mov     $1, %al
        out     %al, $0xF4
1:      hlt
        jmp     1b

# Interrupt gate %ecx to %rax.
set_gate:
        shl     $4, %ecx
        add     $0x14000, %rcx
        mov     %ax, (%rcx)
        movw    $0x18, 2(%rcx)
        movw    $0x8E00, 4(%rcx)
        shr     $16, %rax
        mov     %ax, 6(%rcx)
        shr     $16, %rax
        mov     %eax, 8(%rcx)
        movl    $0, 12(%rcx)
        ret

# Maps the GiB of the faulting address: one table entry with 1 GiB shared with the first (2 MiB pages).
page_fault:
        push    %rax
        mov     %cr2, %rax
        shr     $30, %rax
        movq    $0x12003, 0x11000(,%rax,8)
        pop     %rax
        add     $8, %rsp                # error code
        iretq

timer:  push    %rax
        push    %rdx
        push    %rsi
        incl    ticks(%rip)
        lea     message_tick(%rip), %rsi
        call    print
        mov     $0x20, %al
        out     %al, $0x20
        pop     %rsi
        pop     %rdx
        pop     %rax
        iretq

print:  lodsb
        test    %al, %al
        jz      2f
        mov     %al, %ah
        mov     $(COM1 + 5), %dx
1:      in      %dx, %al
        test    $0x20, %al
        jz      1b
        mov     $COM1, %dx
        mov     %ah, %al
        out     %al, %dx
        jmp     print
2:      ret

        .balign 8
gdt:    .quad   0
        .quad   0x00CF9B000000FFFF      # 0x08 code, 32 bits
        .quad   0x00CF93000000FFFF      # 0x10 data
        .quad   0x00AF9B000000FFFF      # 0x18 code, 64 bits
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt
idt_pointer:
        .word   0xFFF
        .quad   0x14000
ticks:  .long   0

# Pairs of port and value.
chip_setup:
        .byte   0x20, 0x11, 0xA0, 0x11, 0x21, 0x20, 0xA1, 0x28, 0x21, 4, 0xA1, 2, 0x21, 1, 0xA1, 1
        .byte   0x21, 0xFE, 0xA1, 0xFF
        .byte   0x43, 0x34, 0x40, 0x9C, 0x40, 0x2E      # 1193182 / 100 = 0x2E9C
chip_setup_end:

message_real:
        .asciz  "Martlet's built-in guest: real mode\r\n"
message_protected:
        .asciz  "protected mode\r\n"
message_long:
        .asciz  "long mode, paging on\r\n"
message_fault:
        .asciz  "page fault taken and repaired\r\ntimer"
message_tick:
        .asciz  " ."
message_end:
        .ascii  "\r\nIt works. For a Linux: `make run` fetches Debian's kernel and boots it to a shell;\r\n"
        .asciz  "`martlet run --kernel VMLINUZ --initrd INITRD` boots yours.\r\n"
message_failed:
        .asciz  "the repaired page does not hold its value\r\n"
