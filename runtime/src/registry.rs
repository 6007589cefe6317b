//! The runtimes of this host, by isolation.

use std::path::Path;
use std::sync::Arc;

use crate::{ContainerRuntime, Error, ErrorKind, Isolation, Result, Runtime};

/// The runtimes of this host.
#[derive(Clone)]
pub struct Runtimes {
    container: Arc<dyn Runtime>,
}

impl Runtimes {
    /// Opens every isolation that this build has; `exec_root` is where running sandboxes keep their files.
    pub fn open(exec_root: &Path) -> Result<Self> {
        Ok(Runtimes {
            container: Arc::new(ContainerRuntime::open(exec_root)?),
        })
    }

    /// The runtime of an isolation, or why there is none. Nothing weaker is ever given instead.
    pub fn get(&self, isolation: Isolation) -> Result<Arc<dyn Runtime>> {
        match isolation {
            Isolation::Container => Ok(Arc::clone(&self.container)),
            Isolation::Vm => Err(Error::new(
                ErrorKind::HostUnfit,
                "this build of caisson cannot run containers in virtual machines yet: use --isolation=container",
            )),
        }
    }

    /// The isolations that there are.
    pub fn available(&self) -> Vec<Isolation> {
        vec![Isolation::Container]
    }
}
