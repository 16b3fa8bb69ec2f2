# An option ROM that starts the Linux kernel which Bochs' `optramimage` has put into RAM (Linux
# Documentation/arch/x86/boot.rst). The initramfs and the kernel lie there as image.py laid them.
# Bochs backs guest memory in blocks of 8 MiB, in the order in which they are first touched, and
# loads a RAM image into consecutive host memory: so touch the blocks in order first. The BIOS has
# touched the last block already (for ACPI's tables): that one is the image's second.
        .code16
        .intel_syntax noprefix
        .globl _start
_start: .byte 0x55, 0xaa, 1
        cli
        cld
        push cs
        pop ds
        lgdt [gdtr]
        mov eax, cr0
        or al, 1
        mov cr0, eax
        jmp 1f
1:      mov bx, 8
        mov fs, bx                      # keeps its 4 GiB limit in real mode
        and al, 0xfe
        mov cr0, eax
        jmp 2f
2:      mov esi, BLOCK
3:      mov al, fs:[esi]
        add esi, BLOCK
        cmp esi, IMAGE_END
        jb 3b
        mov edi, CHECK_AT
        cmp dword ptr fs:[edi], CHECK   # else the image does not lie as it should
        jne bad
        mov ax, SETUP >> 4
        mov ds, ax
        mov es, ax
        mov fs, ax
        mov gs, ax
        mov ss, ax
        mov esp, HEAP_END
        ljmp (SETUP >> 4) + 0x20, 0
bad:    mov dx, 0x3f8
        mov al, '?'
        out dx, al
4:      hlt
        jmp 4b
        .balign 8
gdt:    .quad 0, 0x00cf93000000ffff
gdtr:   .word 15
        .long ROM + gdt - _start
