//! The isolation trait: what a sandbox is, whichever wall surrounds it.
//!
//! `engine` speaks to every container through [`Runtime`] and [`Sandbox`] and nothing else. There is one [`Runtime`] per
//! [`Isolation`]; both execute the same OCI runtime spec, the container isolation with `jail` on the host, the vm isolation
//! with the same `jail` inside the guest.
//!
//! Must not know: image names, HTTP, Docker's JSON, IP allocation.
//!
//! ```text
//!             create                spawn(init)            start(init)
//!  (nothing) ───────▶ Created ───────────────▶ Held ──────────────────▶ Running ──▶ init exits ──▶ Exited
//!                        │                       │                       │  ▲                       │
//!                        │                       │                 pause ▼  │ resume                │
//!                        │                       │                      Paused                      │
//!                        └──────────── destroy ──┴───────────────────────┴──────────────────────────┘
//!                                         (idempotent: afterwards nothing is left)
//! ```

mod container;
mod registry;
mod sandbox;
mod shim;
mod vm;

pub use container::ContainerRuntime;
pub use registry::Runtimes;
pub use sandbox::*;
pub use vm::{
    EmulatedRing0, NativeRing0, Pieces, Probe, Ring0, Unusable, VmRuntime, VmSettings, probe,
};
