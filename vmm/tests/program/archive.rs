//! A cpio archive ("newc", Documentation/driver-api/early-userspace/buffer-format.rst) of one program.

const EXECUTABLE: u32 = 0o100_755;

/// `/init` with these bytes.
pub fn with_init(bytes: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, "init", EXECUTABLE, bytes);
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, bytes: &[u8]) {
    let (size, name_size) = (bytes.len() as u32, name.len() as u32 + 1);
    let number = archive.len() as u32 + 1;
    archive.extend(b"070701");
    for field in [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(bytes);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
