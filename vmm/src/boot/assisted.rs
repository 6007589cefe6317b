//! What a guest is told on a host that emulates ring 0: features that CPUID there shows whatever we say, the slot that the
//! assist takes, and work that is worth its instructions only where instructions are cheap.

/// Appended to the kernel's command line.
///
/// - `smap` … `movbe`: instructions that the host refuses; the assist completes each, at the price of an exit. Programs, which
///   run on the processor, still see them in CPUID: those built for x86-64-v2 start only with CMPXCHG16B and POPCNT.
/// - `erms,fsrm`: a string instruction is emulated element by element, so bytes cost eight times what words do.
/// - `vsyscall=none nopti`: the assist's gate is in the slot of the vsyscall page, visible to user mode.
/// - `mitigations=off`: the guest's kernel code never runs on the processor, so nothing of it is speculated.
/// - `noreplace-smp`: a guest with one vCPU would rewrite each `lock` prefix, through temporary mappings.
/// - `no_timer_check tsc=reliable`: no waiting for ticks to check timers that KVM provides.
/// - `fresh_memory` (patch 0014): where no kernel was loaded, memory is the host's zero pages.
/// - `nf_conntrack.hashsize`: the table is walked when the guest starts; a smaller one has as many connections as it should.
pub const COMMAND_LINE: &str = " clearcpuid=smap,smep,cx16,popcnt,rdrand,rdseed,movbe,erms,fsrm,rdtscp,invpcid,xsaves vsyscall=none nopti \
     mitigations=off noreplace-smp no_timer_check tsc=reliable fresh_memory nf_conntrack.hashsize=1024";
