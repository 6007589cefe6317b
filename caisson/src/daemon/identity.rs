//! The id of an engine's state: made at first start, kept in `DATA_ROOT/engine-id`.

use std::io::Write;
use std::path::Path;

use anyhow::Context;

/// Reads the id, or makes one.
pub fn engine_id(data_root: &Path) -> anyhow::Result<String> {
    let path = data_root.join("engine-id");
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
    // The kernel makes one for whoever reads this file.
    let id =
        std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("cannot make an id")?;
    let aside = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&aside)?;
        file.write_all(id.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&aside, &path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_made_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = engine_id(dir.path()).expect("made");
        assert_eq!(first.len(), 36);
        assert_eq!(engine_id(dir.path()).expect("read"), first);
        std::fs::write(dir.path().join("engine-id"), "").expect("write");
        assert_ne!(engine_id(dir.path()).expect("made again"), first);
    }
}
