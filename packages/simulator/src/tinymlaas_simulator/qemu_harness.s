@ The firmware around a payload in QEMU. It is position independent and lies at the CPU's reset base, after a vector table of
@ 16 words that the host writes (stack, `reset`, `fault` 14 times). Offsets are fixed: the host and the observer know them.
@
@ 0x400: parameters: FPU present, UART base, arena, entry (Thumb bit set), stack top, then pairs (address, bytes) that are sent
@ through the UART at the end, up to a pair with 0 bytes. 0x800: report: status (0 returned, 1 fault), return value, stack
@ pointer, r4 to r11, s16 to s31; of a fault: exception number, CFSR, HFSR, MMFAR, BFAR.

	.syntax unified
	.cpu cortex-m4
	.fpu fpv4-sp-d16
	.thumb
	.text
	.org	0x40
reset:
	adr.w	r7, reset
	add.w	r6, r7, #0x3c0
	ldr	r0, [r6]
	cbz	r0, 1f
	movw	r1, #0xed88
	movt	r1, #0xe000
	ldr	r0, [r1]
	orr	r0, r0, #0xf00000
	str	r0, [r1]
	dsb
	isb
1:
	ldr	r1, [r6, #4]
	movs	r0, #16
	str	r0, [r1, #16]
	movs	r0, #1
	str	r0, [r1, #8]
	ldr	r0, [r6]
	cbz	r0, 2f
	add.w	r1, r7, #0x6a0
	vldmia	r1, {s16-s31}
2:
	ldr	r0, [r6, #8]
	ldr.w	r12, [r6, #12]
	ldr	r1, [r6, #16]
	mov	sp, r1
	add.w	r1, r7, #0x680
	ldmia.w	r1, {r4-r11}
	b	call
	.org	0xbe
call:
	blx	r12
	.org	0xc0
back:
	adr.w	r1, reset
	add.w	r1, r1, #0x7c0
	movs	r2, #0
	str	r2, [r1]
	str	r0, [r1, #4]
	mov	r2, sp
	str	r2, [r1, #8]
	add.w	r3, r1, #12
	stmia.w	r3, {r4-r11}
	adr.w	r0, reset
	ldr.w	r2, [r0, #0x3c0]
	cbz	r2, 3f
	add.w	r3, r1, #44
	vstmia	r3, {s16-s31}
3:
	b.w	send
	.org	0x140
fault:
	adr.w	r1, reset
	add.w	r1, r1, #0x7c0
	movs	r2, #1
	str	r2, [r1]
	mrs	r2, ipsr
	str	r2, [r1, #4]
	movw	r3, #0xed28
	movt	r3, #0xe000
	ldr	r2, [r3]
	str	r2, [r1, #8]
	ldr	r2, [r3, #4]
	str	r2, [r1, #12]
	ldr	r2, [r3, #12]
	str	r2, [r1, #16]
	ldr	r2, [r3, #16]
	str	r2, [r1, #20]
	b.w	send
	.org	0x1c0
send:
	adr.w	r6, reset
	add.w	r6, r6, #0x3c0
	ldr	r4, [r6, #4]
	add.w	r6, r6, #20
4:
	ldmia	r6!, {r0, r1}
	cbz	r1, done
5:
	ldr	r3, [r4, #4]
	lsls	r3, r3, #31
	bmi	5b
	ldrb	r2, [r0], #1
	str	r2, [r4]
	subs	r1, r1, #1
	bne	5b
	b	4b
	.org	0x240
done:
	nop
	b	done
	.org	0x400
