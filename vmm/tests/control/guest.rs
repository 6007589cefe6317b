//! A guest of thirty bytes that every KVM runs, with or without an assist: it counts in memory and writes a letter for each
//! step to the serial port.

/// `a`, `b`, … `p`, `a`, …: the low bits of the counter, for ever.
pub const COUNTING: &[u8] = &[
    0xbb, 0x00, 0x00, 0x20, 0x00, // mov ebx, 2 MiB: where the counter is
    0x8b, 0x03, // again: mov eax, [rbx]
    0x24, 0x0f, // and al, 15
    0x04, b'a', // add al, 'a'
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xff, 0x03, // inc dword [rbx]
    0xb9, 0x00, 0x20, 0x00, 0x00, // mov ecx, 0x2000
    0xff, 0xc9, // wait: dec ecx
    0x75, 0xfc, // jnz wait
    0xeb, 0xe8, // jmp again
];

/// Resets the machine.
pub const RESETTING: &[u8] = &[
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
];

/// Faults without anywhere to go.
pub const CRASHING: &[u8] = &[0x0f, 0x0b];

/// Says that it panics, and resets the machine.
pub fn panicking() -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    for byte in b"Kernel panic - not syncing: on purpose\n" {
        code.extend([0xb0, *byte, 0xee]);
    }
    code.extend(RESETTING);
    code
}

/// An ELF executable that is loaded at 1 MiB and begins with `code`.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for (value, bytes) in [
        (2, 2),
        (62, 2),
        (1, 4),
        (ADDRESS, 8),
        (64, 8),
        (0, 8),
        (0, 4),
        (64, 2),
    ] {
        push(&mut file, value, bytes);
    }
    for value in [56, 1, 0, 0, 0] {
        push(&mut file, value, 2);
    }
    let len = code.len() as u64;
    for (value, bytes) in [(1, 4), (5, 4), (HEADERS, 8), (ADDRESS, 8), (ADDRESS, 8)] {
        push(&mut file, value, bytes);
    }
    for value in [len, len, 4096] {
        push(&mut file, value, 8);
    }
    file.extend(code);
    file
}

fn push(file: &mut Vec<u8>, value: u64, bytes: usize) {
    file.extend(&value.to_le_bytes()[..bytes]);
}
