/* What a program sees of SYSCALL, and what it can make of the gate that stands in for it on some hosts.
 *
 * Every line it prints is "NAME: VALUE". Run as an ordinary process it says what the processor does; run as the init of a
 * guest it must say the same, except for the lines that begin with "gate", which are about addresses that elsewhere are
 * nothing. At the end an init resets its machine. */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define GATE 0xffffffffff600000ull
#define TRAP (GATE + 0x1000)
typedef uint64_t u64;

/* Registers around one SYSCALL: rax rcx rdx rbx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15 flags. */
struct regs { u64 rax, rcx, rdx, rbx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, flags, rsp; };
extern void around(struct regs *in, struct regs *out);
extern char around_syscall[], around_next[];
asm(".text\n"
    "around: push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rsi\n"
    " mov %rdi,%rax\n"
    " mov %rsp,saved_rsp(%rip)\n"
    " push 120(%rax); popfq\n"
    " mov 8(%rax),%rcx; mov 16(%rax),%rdx; mov 24(%rax),%rbx; mov 32(%rax),%rsi; mov 40(%rax),%rdi; mov 48(%rax),%rbp\n"
    " mov 56(%rax),%r8; mov 64(%rax),%r9; mov 72(%rax),%r10; mov 80(%rax),%r11; mov 88(%rax),%r12; mov 96(%rax),%r13\n"
    " mov 104(%rax),%r14; mov 112(%rax),%r15; mov 0(%rax),%rax\n"
    "around_syscall: syscall\n"
    "around_next: pushfq\n"
    " push %rdi; mov 16+0(%rsp),%rdi\n"
    " mov %rax,0(%rdi); mov %rcx,8(%rdi); mov %rdx,16(%rdi); mov %rbx,24(%rdi); mov %rsi,32(%rdi); mov %rbp,48(%rdi)\n"
    " mov %r8,56(%rdi); mov %r9,64(%rdi); mov %r10,72(%rdi); mov %r11,80(%rdi); mov %r12,88(%rdi); mov %r13,96(%rdi)\n"
    " mov %r14,104(%rdi); mov %r15,112(%rdi); pop %rax; mov %rax,40(%rdi); pop 120(%rdi)\n"
    " push $2; popfq\n"
    " mov %rsp,%rax; mov saved_rsp(%rip),%rcx; sub %rcx,%rax; mov %rax,128(%rdi)\n"
    " pop %rsi; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n"
    ".data\nsaved_rsp: .quad 0\n.text\n");

static void say(const char *name, const char *format, ...) {
    char line[256];
    va_list list;
    va_start(list, format);
    int n = snprintf(line, sizeof line, "%s: ", name);
    n += vsnprintf(line + n, sizeof line - n, format, list);
    va_end(list);
    line[n++] = '\n';
    if (write(1, line, n) != n) _exit(9);
}

/* A case runs in a child without privileges; what it dies of is its outcome. */
static void ends(const char *name, void (*body)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        if (setuid(65534) && getuid() == 0) _exit(8);
        body();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) say(name, "signal %d", WTERMSIG(status));
    else say(name, "exit %d", WEXITSTATUS(status));
}

static void registers(const char *name, u64 flags) {
    struct regs in = {.rax = SYS_getppid, .rcx = 0x1111, .rdx = 0x2222, .rbx = 0x3333, .rsi = 0x4444, .rdi = 0x5555,
        .rbp = 0x6666, .r8 = 0x8888, .r9 = 0x9999, .r10 = 0xaaaa, .r11 = 0xbbbb, .r12 = 0xcccc, .r13 = 0xdddd, .r14 = 0xeeee,
        .r15 = 0xffff, .flags = flags | 0x202}, out;
    around(&in, &out);
    say(name, "rip %d rax %d kept %d r11 %lx flags %lx rsp %ld", out.rcx == (u64)around_next, out.rax == (u64)getppid(),
        out.rdx == in.rdx && out.rbx == in.rbx && out.rsi == in.rsi && out.rdi == in.rdi && out.rbp == in.rbp && out.r8 == in.r8
        && out.r9 == in.r9 && out.r10 == in.r10 && out.r12 == in.r12 && out.r13 == in.r13 && out.r14 == in.r14 && out.r15 == in.r15,
        out.r11, out.flags, out.rsp);
}

static void segments(const char *name, unsigned ds) {
    unsigned cs, ss, ds2, es, fs, gs;
    asm volatile("mov %6,%%ds; mov %6,%%es\n mov $110,%%eax; syscall\n mov %%cs,%0; mov %%ss,%1; mov %%ds,%2; mov %%es,%3; mov %%fs,%4; mov %%gs,%5"
        : "=&r"(cs), "=&r"(ss), "=&r"(ds2), "=&r"(es), "=&r"(fs), "=&r"(gs) : "r"(ds) : "rax", "rcx", "r11", "memory");
    say(name, "cs %x ss %x ds %x es %x fs %x gs %x", cs, ss, ds2, es, fs, gs);
    asm volatile("mov %0,%%ds; mov %0,%%es" :: "r"(0));
}

static void local_segment(void) {
    struct user_desc d = {.entry_number = 0, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};
    if (syscall(SYS_modify_ldt, 1, &d, sizeof d)) { say("ldt", "errno %d", errno); return; }
    segments("ldt data", 7);
    unsigned ss;
    asm volatile("mov %1,%%ss\n mov $110,%%eax; syscall\n mov %%ss,%0" : "=&r"(ss) : "r"(7) : "rax", "rcx", "r11", "memory");
    say("ldt stack", "ss %x", ss);
    _exit(0);
}

/* Goes there as after a SYSCALL that asks for `exit(77)`, with registers of the caller's choice. */
static u64 target, rcx_, r11_, flags_;
static void forged(void) {
    register u64 r11 asm("r11") = r11_;
    asm volatile("push %3; popfq; jmp *%0" :: "r"(target), "c"(rcx_), "a"((u64)SYS_exit), "r"(flags_), "D"(77ul), "r"(r11) : "memory");
    __builtin_unreachable();
}
static void gate(const char *name, u64 at, u64 rcx, u64 r11, u64 flags) {
    target = at; rcx_ = rcx; r11_ = r11; flags_ = flags | 0x202;
    ends(name, forged);
}

static void write_trap(void) { asm volatile("movb $0,(%0)" :: "r"(TRAP), "a"(SYS_exit), "D"(77) : "rcx"); }
static void write_trap_behind_syscall(void) { asm volatile("lea around_next(%%rip),%%rcx; movb $0,(%0)" :: "r"(TRAP), "a"(SYS_exit), "D"(77) : "rcx"); }
static void read_trap(void) { volatile char c = *(volatile char *)TRAP; _exit(c & 1 ? 55 : 54); }
static void write_gate(void) { *(volatile char *)GATE = 0; }
static void run_trap(void) { ((void (*)(void))TRAP)(); }
static void string_trap(void) { asm volatile("rep movsb" :: "S"(&target), "D"(TRAP), "c"(4ul) : "memory"); }
static void string_both(void) { asm volatile("rep movsb" :: "S"(TRAP), "D"(TRAP + 64), "c"(4ul) : "memory"); }
static void push_trap(void) { asm volatile("mov %0,%%rsp; push %%rax; hlt" :: "r"(TRAP + 64)); }
static void vector_trap(void) { asm volatile("movdqu %%xmm0,(%0); hlt" :: "r"(TRAP)); }
static void avx_trap(void) { asm volatile("vmovdqu %%ymm0,(%0); hlt" :: "r"(TRAP)); }
static void save_trap(void) { asm volatile("xsave (%0); hlt" :: "r"(TRAP), "a"(7), "d"(0)); }
static void fx_trap(void) { asm volatile("fxsave (%0); hlt" :: "r"(TRAP)); }
static void locked_trap(void) { asm volatile("lock incl (%0); hlt" :: "r"(TRAP)); }
static void exchange_trap(void) { asm volatile("lock cmpxchg16b (%0); hlt" :: "r"(TRAP), "a"(0), "d"(0), "b"(0), "c"(0)); }
static void edge_trap(void) { asm volatile("movq $0,(%0); hlt" :: "r"(TRAP - 4)); }
static void far_edge_trap(void) { asm volatile("movq $0,(%0); hlt" :: "r"(TRAP + 0xffc)); }
static void syscall_into_trap(void) { _exit(write(1, (void *)TRAP, 4) < 0 && errno == EFAULT && read(0, (void *)GATE, 1) < 0 ? 42 : 1); }
static void map_trap(void) { void *p = mmap((void *)GATE, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); _exit(p == MAP_FAILED ? 42 : 1); }
static void unmap_gate(void) { _exit(munmap((void *)GATE, 4096) < 0 && mprotect((void *)GATE, 4096, 7) < 0 ? 42 : 1); }

static void int80(void) { long r; asm volatile("int $0x80" : "=a"(r) : "a"(20) : "r8", "r9", "r10", "r11", "memory"); _exit(r == getpid() ? 42 : 1); }
static void sysenter64(void) { asm volatile("mov %%rsp,%%rbp; sysenter" :: "a"(20)); }
/* 32-bit code at a low address; `code` must end by itself. */
static void compat(const unsigned char *code, size_t n) {
    char *page = mmap((void *)0x10000000, 8192, 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (page == MAP_FAILED) _exit(7);
    memcpy(page, code, n);
    asm volatile("mov %0,%%rsp; sub $16,%%rsp; movl $0x10000000,(%%rsp); movl $0x23,4(%%rsp); ljmp *(%%rsp)" :: "r"(page + 8192));
}
/* mov eax,1; mov ebx,77; int 0x80 */
static void compat_int80(void) { compat((unsigned char *)"\xb8\x01\0\0\0\xbb\x4d\0\0\0\xcd\x80", 12); }
static void compat_syscall(void) { compat((unsigned char *)"\xb8\x01\0\0\0\xbb\x4d\0\0\0\x0f\x05\xf4", 13); }
static void compat_sysenter(void) { compat((unsigned char *)"\xb8\x01\0\0\0\xbb\x4d\0\0\0\x89\xe5\x0f\x34\xf4", 15); }

static void privileged_hlt(void) { asm volatile("hlt"); }
static void privileged_cli(void) { asm volatile("cli"); }
static void privileged_out(void) { asm volatile("outb %%al,$0x80" :: "a"(0)); }
static void privileged_lstar(void) { asm volatile("wrmsr" :: "c"(0xc0000082), "a"(0), "d"(0)); }
static void privileged_swapgs(void) { asm volatile("swapgs"); }
static void privileged_cr3(void) { u64 v; asm volatile("mov %%cr3,%0" : "=r"(v)); }
static void privileged_iret(void) { asm volatile("push $0; push %%rsp; pushfq; push $0x10; lea 1f(%%rip),%%rax; push %%rax; iretq; 1: hlt" ::: "rax"); }
static void privileged_sysret(void) { asm volatile("sysretq" :: "c"(0)); }
static void undefined(void) { asm volatile("ud2"); }

/* A child that stops before and after its SYSCALL: what its tracer sees. */
static void traced(void) {
    pid_t child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        struct regs in = {.rax = SYS_getppid, .rcx = 0x1111, .r11 = 0xbbbb, .flags = 0x202}, out;
        around(&in, &out);
        _exit(out.rax == (u64)getppid() ? 42 : 43);
    }
    int status;
    waitpid(child, &status, 0);
    ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD);
    for (int stops = 0; stops < 200; stops++) {
        ptrace(PTRACE_SYSCALL, child, 0, 0);
        waitpid(child, &status, 0);
        if (WIFEXITED(status)) { say("traced", "exit %d", WEXITSTATUS(status)); return; }
        struct user_regs_struct r;
        ptrace(PTRACE_GETREGS, child, 0, &r);
        if (r.rip == (u64)around_next)
            say("traced stop", "rax %d orig %lld rcx %d r11 %llx flags %llx cs %llx ss %llx", r.rax == (u64)-ENOSYS ? -1 : 0, r.orig_rax,
                r.rcx == r.rip, r.r11, r.eflags, r.cs, r.ss);
    }
}

/* A child that is stepped through its SYSCALL. */
static void stepped(void) {
    pid_t child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        struct regs in = {.rax = SYS_getppid, .rcx = 0x1111, .r11 = 0xbbbb, .flags = 0x202}, out;
        around(&in, &out);
        _exit(out.rax == (u64)getppid() ? 42 : 43);
    }
    int status, near = 0;
    waitpid(child, &status, 0);
    char line[200] = "";
    for (int steps = 0; steps < 100000; steps++) {
        if (ptrace(PTRACE_SINGLESTEP, child, 0, 0)) break;
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status)) break;
        struct user_regs_struct r;
        ptrace(PTRACE_GETREGS, child, 0, &r);
        if (r.rip == (u64)around_syscall) near = 5;
        if (near > 0) {
            near--;
            snprintf(line + strlen(line), sizeof line - strlen(line), " %s%llx", r.rip >= GATE ? "gate+" : "", r.rip >= GATE ? r.rip - GATE : r.rip - (u64)around_syscall);
            if (!near) { say("stepped", "%s", line); ptrace(PTRACE_CONT, child, 0, 0); waitpid(child, &status, 0); break; }
        }
    }
    say("stepped end", "%x", status);
}

/* Stepping oneself: TF stays set over a SYSCALL. */
static volatile int traps; static volatile u64 trap_rips[32];
static void on_trap(int s, siginfo_t *i, void *c) { ucontext_t *u = c; if (traps < 32) trap_rips[traps] = u->uc_mcontext.gregs[REG_RIP]; traps++; if (traps > 60) u->uc_mcontext.gregs[REG_EFL] &= ~0x100; }
static void stepping_oneself(void) {
    struct sigaction a = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &a, 0);
    struct regs in = {.rax = SYS_getppid, .flags = 0x302}, out;
    around(&in, &out);
    char line[200] = "";
    for (int i = 0; i < traps && i < 32; i++)
        if (trap_rips[i] >= (u64)around_syscall && (trap_rips[i] <= (u64)around_next + 2 || trap_rips[i] >= GATE))
            snprintf(line + strlen(line), sizeof line - strlen(line), " %s%lx", trap_rips[i] >= GATE ? "gate+" : "", trap_rips[i] >= GATE ? trap_rips[i] - GATE : trap_rips[i] - (u64)around_syscall);
    say("stepping", "r11 %lx flags %lx at%s", out.r11, out.flags & ~0x100ul, line);
    _exit(0);
}

/* Signals that come at any time, while SYSCALLs are made. */
static volatile long signals, inside;
static void on_alarm(int s, siginfo_t *i, void *c) { ucontext_t *u = c; signals++; if ((u64)u->uc_mcontext.gregs[REG_RIP] >= GATE) inside++; }
static void interrupted(void) {
    struct sigaction a = {.sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGALRM, &a, 0);
    struct itimerval t = {{0, 10000}, {0, 10000}};
    setitimer(ITIMER_REAL, &t, 0);
    long wrong = 0, me = getppid();
    for (long i = 0; i < 4000 || signals < 20; i++) {
        struct regs in = {.rax = SYS_getppid, .rbx = i, .r15 = ~i, .flags = 0x202}, out;
        around(&in, &out);
        wrong += out.rax != (u64)me || out.rbx != (u64)i || out.r15 != (u64)~i || out.rcx != (u64)around_next;
    }
    say("interrupted", "wrong %ld", wrong);
    if (inside) say("gate interrupted", "%ld of %ld", inside, signals);
    _exit(0);
}

static void speed(void) {
    struct timespec a, b; int n = 2000;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < n; i++) syscall(SYS_getppid);
    clock_gettime(CLOCK_MONOTONIC, &b);
    say("gate speed", "%.0f SYSCALLs/s", n / ((b.tv_sec - a.tv_sec) + (b.tv_nsec - a.tv_nsec) * 1e-9));
}

int main(void) {
    int init = getpid() == 1;
    if (init) {
        mkdir("/dev", 0755);
        mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
        int f = open("/dev/console", O_RDWR);
        dup2(f, 0); dup2(f, 1); dup2(f, 2);
    }
    /* what the distributions' programs look for before they start */
    say("levels", "v2 %d v3 %d", __builtin_cpu_supports("x86-64-v2") != 0, __builtin_cpu_supports("x86-64-v3") != 0);
    registers("plain", 0);
    registers("arithmetic", 0x8d5);
    registers("direction", 0x400);
    registers("alignment", 0x40000);
    registers("identification", 0x200000);
    registers("nested", 0x4000);
    registers("privilege level", 0x3000);
    segments("segments", 0x2b);
    segments("no segments", 0);
    ends("ldt", local_segment);
    ends("int 0x80", int80);
    ends("sysenter", sysenter64);
    ends("32 bit int 0x80", compat_int80);
    ends("32 bit syscall", compat_syscall);
    ends("32 bit sysenter", compat_sysenter);
    ends("hlt", privileged_hlt);
    ends("cli", privileged_cli);
    ends("out", privileged_out);
    ends("wrmsr", privileged_lstar);
    ends("swapgs", privileged_swapgs);
    ends("cr3", privileged_cr3);
    ends("iret to ring 0", privileged_iret);
    ends("sysret", privileged_sysret);
    ends("ud2", undefined);
    traced();
    stepped();
    ends("stepping", stepping_oneself);
    ends("interrupted", interrupted);
    if (init) {
        u64 after = (u64)around_next;
        gate("gate as by syscall", GATE, after, 0x202, 0);
        gate("gate elsewhere", GATE, (u64)main, 0x202, 0);
        gate("gate not canonical", GATE, 0x800000000000, 0x202, 0);
        gate("gate to the kernel", GATE, 0xffffffff81000000, 0x202, 0);
        gate("gate to itself", GATE, GATE + 8, 0x202, 0);
        gate("gate null", GATE, 0, 0x202, 0);
        gate("gate r11", GATE, after, 0xffffffffffffffff, 0);
        gate("gate nested", GATE, after, 0x202, 0x4000);
        for (int i = 1; i < 12; i++) { char name[32]; snprintf(name, 32, "gate+%d", i); gate(name, GATE + i, after, 0x202, 0); }
        ends("gate write trap", write_trap);
        ends("gate write trap behind syscall", write_trap_behind_syscall);
        ends("gate read trap", read_trap);
        ends("gate write", write_gate);
        ends("gate run trap", run_trap);
        ends("gate string", string_trap);
        ends("gate string both", string_both);
        ends("gate push", push_trap);
        ends("gate vector", vector_trap);
        ends("gate avx", avx_trap);
        ends("gate xsave", save_trap);
        ends("gate fxsave", fx_trap);
        ends("gate locked", locked_trap);
        ends("gate exchange", exchange_trap);
        ends("gate edge", edge_trap);
        ends("gate far edge", far_edge_trap);
        ends("gate in a syscall", syscall_into_trap);
        ends("gate mapped over", map_trap);
        ends("gate unmapped", unmap_gate);
        speed();
    }
    say("end", "%d", 0);
    if (init) reboot(RB_AUTOBOOT);
}
