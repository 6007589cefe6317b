//! Copying from and to a container's file system, running or not: a sandbox without a process serves a stopped one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use caisson_runtime::Sandbox;
use tokio::sync::mpsc;

use super::Message;
use super::actor::Actor;
use super::start::create_idle;
use crate::error::{Error, Result};
use crate::records::Status;

/// A sandbox without a process, and how many use it.
pub(crate) struct Idle {
    pub sandbox: Arc<dyn Sandbox>,
    leases: Arc<AtomicUsize>,
}

impl Idle {
    pub(crate) fn is_leased(&self) -> bool {
        self.leases.load(Ordering::Acquire) > 0
    }
}

/// The right to use a sandbox' files; given back on drop.
pub(crate) struct Lease {
    pub sandbox: Arc<dyn Sandbox>,
    idle: Option<(Arc<AtomicUsize>, mpsc::WeakUnboundedSender<Message>)>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((leases, mailbox)) = self.idle.take()
            && leases.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(mailbox) = mailbox.upgrade()
        {
            let _ = mailbox.send(Message::Released);
        }
    }
}

impl Actor {
    pub(super) async fn lease_files(&mut self) -> Result<Lease> {
        if matches!(self.view.state.status, Status::Removing | Status::Dead) {
            return Err(Error::conflict(format!(
                "container {} is being removed",
                self.view.id
            )));
        }
        if let Some(sandbox) = &self.sandbox {
            return Ok(Lease {
                sandbox: sandbox.clone(),
                idle: None,
            });
        }
        let idle = match &self.idle {
            Some(idle) => idle,
            None => {
                let runtime = self.runtime.clone().ok_or_else(|| {
                    crate::admission::no_such_isolation(self.view.definition.isolation)
                })?;
                let sandbox = create_idle(&self.inner, &runtime, &self.view).await?;
                self.idle.insert(Idle {
                    sandbox,
                    leases: Arc::default(),
                })
            }
        };
        idle.leases.fetch_add(1, Ordering::AcqRel);
        Ok(Lease {
            sandbox: idle.sandbox.clone(),
            idle: Some((idle.leases.clone(), self.mailbox.clone())),
        })
    }

    /// The last lease may have ended.
    pub(super) async fn end_idle(&mut self) {
        if self.idle.as_ref().is_some_and(|i| !i.is_leased())
            && let Some(idle) = self.idle.take()
            && let Err(e) = idle.sandbox.destroy(Duration::ZERO).await
        {
            tracing::error!(container = self.view.id, error = %e, "a sandbox without a process could not be destroyed");
        }
    }
}
