/* Two processes that make SYSCALLs for ever and look whether anything of theirs has changed: registers, vector registers,
 * memory. Each writes a dot now and then, or what is wrong. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static void wrong(const char *what) {
    if (write(1, what, strlen(what)) < 0) _exit(1);
}

int main(void) {
    mkdir("/dev", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
    int console = open("/dev/console", O_RDWR);
    dup2(console, 1);
    long parent = getpid();
    int child = fork() == 0;
    long answer = child ? parent : 0;
    uint64_t vector[2] = {0x1122334455667788ull + child, 0x99aabbccddeeff00ull - child}, back[2];
    asm volatile("movdqu %0,%%xmm9" ::"m"(vector));
    volatile uint64_t heap[512];
    for (int i = 0; i < 512; i++) heap[i] = i * 3 + child;
    for (uint64_t turn = 1;; turn++) {
        uint64_t kept = turn;
        long result;
        register uint64_t r12 asm("r12") = ~turn;
        asm volatile("syscall" : "=a"(result), "+r"(r12), "+b"(kept) : "a"(110) : "rcx", "r11", "memory");
        if (result != answer) wrong("R");
        if (kept != turn || r12 != ~turn) wrong("K");
        asm volatile("movdqu %%xmm9,%0" : "=m"(back));
        if (memcmp(vector, back, 16)) wrong("V");
        if (heap[turn & 511] != (turn & 511) * 3 + child) wrong("H");
        if (turn % 100 == 0) wrong(".");
    }
}
