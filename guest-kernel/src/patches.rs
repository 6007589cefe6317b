//! Changes to the kernel's source: each in a file of its own, which begins with what it does and what it gains.

/// The patches by name, in the order in which they are applied.
pub fn patches() -> [(&'static str, &'static str); 22] {
    [
        (
            "0001-alternatives-no-decoder",
            include_str!("../patches/0001-alternatives-no-decoder.patch"),
        ),
        (
            "0002-slub-sysfs-optional",
            include_str!("../patches/0002-slub-sysfs-optional.patch"),
        ),
        (
            "0003-params-no-sysfs",
            include_str!("../patches/0003-params-no-sysfs.patch"),
        ),
        (
            "0004-percpu-page-sized",
            include_str!("../patches/0004-percpu-page-sized.patch"),
        ),
        (
            "0005-image-gaps",
            include_str!("../patches/0005-image-gaps.patch"),
        ),
        (
            "0006-loaded-as-elf",
            include_str!("../patches/0006-loaded-as-elf.patch"),
        ),
        (
            "0007-direct-map-none",
            include_str!("../patches/0007-direct-map-none.patch"),
        ),
        (
            "0008-irq-no-sysfs",
            include_str!("../patches/0008-irq-no-sysfs.patch"),
        ),
        (
            "0009-page-structures",
            include_str!("../patches/0009-page-structures.patch"),
        ),
        (
            "0010-pipapo-without-avx2",
            include_str!("../patches/0010-pipapo-without-avx2.patch"),
        ),
        (
            "0011-bpf-jit-without-modules",
            include_str!("../patches/0011-bpf-jit-without-modules.patch"),
        ),
        (
            "0012-strings-by-words",
            include_str!("../patches/0012-strings-by-words.patch"),
        ),
        (
            "0013-ip-idents-on-demand",
            include_str!("../patches/0013-ip-idents-on-demand.patch"),
        ),
        (
            "0014-page-structures-free",
            include_str!("../patches/0014-page-structures-free.patch"),
        ),
        (
            "0015-data-not-executable-first",
            include_str!("../patches/0015-data-not-executable-first.patch"),
        ),
        (
            "0016-parameters-once",
            include_str!("../patches/0016-parameters-once.patch"),
        ),
        (
            "0017-retpolines-at-once",
            include_str!("../patches/0017-retpolines-at-once.patch"),
        ),
        (
            "0018-irq-proc-on-demand",
            include_str!("../patches/0018-irq-proc-on-demand.patch"),
        ),
        (
            "0019-freelists-in-one-pass",
            include_str!("../patches/0019-freelists-in-one-pass.patch"),
        ),
        (
            "0020-no-events-before-init",
            include_str!("../patches/0020-no-events-before-init.patch"),
        ),
        (
            "0021-erofs-large-folios",
            include_str!("../patches/0021-erofs-large-folios.patch"),
        ),
        (
            "0022-text-ends-with-a-huge-page",
            include_str!("../patches/0022-text-ends-with-a-huge-page.patch"),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_says_what_it_does_and_changes_something() {
        for (name, text) in patches() {
            let (reason, change) = text.split_once("\n--- a/").expect(name);
            assert!(reason.lines().count() >= 3, "{name} gives no reason");
            assert!(
                change.contains("\n+++ b/") && change.contains("\n@@ "),
                "{name}"
            );
        }
    }

    #[test]
    fn the_list_is_the_folder() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/patches");
        let mut found: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder of patches")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        found.sort();
        let listed: Vec<String> = patches()
            .iter()
            .map(|(name, _)| format!("{name}.patch"))
            .collect();
        assert_eq!(found, listed);
    }
}
