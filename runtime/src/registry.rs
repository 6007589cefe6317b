//! The runtimes of this host, by isolation.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::{
    ContainerRuntime, Error, ErrorKind, Isolation, Result, Runtime, VmRuntime, VmSettings,
};

/// The runtimes of this host.
#[derive(Clone, Default)]
pub struct Runtimes {
    all: BTreeMap<Isolation, Entry>,
}

#[derive(Clone)]
struct Entry {
    runtime: Arc<dyn Runtime>,
    /// Says why nothing new can be made on this host now.
    check: Arc<dyn Fn() -> Result<()> + Send + Sync>,
}

impl Runtimes {
    /// Opens every isolation that this build has; `exec_root` is where running sandboxes keep their files.
    pub fn open(exec_root: &Path, vm: VmSettings) -> Result<Self> {
        let vm = Arc::new(VmRuntime::open(exec_root, vm)?);
        let check = Arc::clone(&vm);
        Ok(Runtimes::default()
            .with(Arc::new(ContainerRuntime::open(exec_root)?), || Ok(()))
            .with(vm, move || check.check()))
    }

    /// Adds a runtime, in place of another of its isolation. `check` is asked whenever something is to be made.
    pub fn with(
        mut self,
        runtime: Arc<dyn Runtime>,
        check: impl Fn() -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let entry = Entry {
            check: Arc::new(check),
            runtime,
        };
        self.all.insert(entry.runtime.isolation(), entry);
        self
    }

    /// The runtime of an isolation for something new, or why there is none. Nothing weaker is ever given instead.
    pub fn get(&self, isolation: Isolation) -> Result<Arc<dyn Runtime>> {
        let entry = self.all.get(&isolation).ok_or_else(|| {
            Error::new(
                ErrorKind::HostUnfit,
                format!("this build of caisson has no isolation {isolation}"),
            )
        })?;
        (entry.check)()?;
        Ok(Arc::clone(&entry.runtime))
    }

    /// The runtime of an isolation for what is there already, whether or not anything new could be made.
    pub fn for_recovery(&self, isolation: Isolation) -> Option<Arc<dyn Runtime>> {
        let entry = self.all.get(&isolation)?;
        Some(Arc::clone(&entry.runtime))
    }

    /// All of them, likewise.
    pub fn all(&self) -> impl Iterator<Item = Arc<dyn Runtime>> {
        self.all.values().map(|entry| Arc::clone(&entry.runtime))
    }

    /// The isolations in which something new can be made on this host now.
    pub fn available(&self) -> Vec<Isolation> {
        self.all
            .iter()
            .filter(|(_, entry)| (entry.check)().is_ok())
            .map(|(isolation, _)| *isolation)
            .collect()
    }
}
