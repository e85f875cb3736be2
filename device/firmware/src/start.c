/* Reset: clear RAM, switch the FPU on, run. RAM is what the linker script says; nothing is initialized from flash but code. */
#include "firmware.h"

extern uint8_t fw_bss_start[];
extern uint8_t fw_bss_end[];
extern uint8_t fw_stack_top[];

int fw_main(void);

static void clear_bss(void) {
    for (uint8_t *p = fw_bss_start; p < fw_bss_end; p++) *(volatile uint8_t *)p = 0;
}

#if defined(__arm__)
#if !defined(FW_APPLICATION) /* an application is started by the boot loader, and may lie anywhere */
typedef struct vector_table {
    const void *stack;
    void (*reset)(void);
} vector_table;

__attribute__((section(".vectors"), used)) static const vector_table VECTORS = {fw_stack_top, fw_reset};
#else
__attribute__((section(".vectors"), used)) /* nothing in the image names it: the package's head does */
#endif
void fw_reset(void) {
#if defined(FW_HAS_FPU)
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: full access to CP10 and CP11 */
    __asm__ volatile("dsb\n isb" ::: "memory");
#endif
    clear_bss();
    fw_main();
    for (;;) __asm__ volatile("");
}
#else
__attribute__((naked, section(".vectors"), used)) void fw_reset(void) {
    __asm__ volatile(".option push\n .option norelax\n la sp, fw_stack_top\n .option pop\n j fw_start");
}

__attribute__((used)) void fw_start(void) {
    clear_bss();
    fw_main();
    for (;;) __asm__ volatile("");
}
#endif
