//! What every isolation must do, whichever wall it builds. Each case runs against a fresh [`Bench`] and looks at the host
//! afterwards: no process, cgroup, mount or file of the sandbox may be left.
//!
//! Needs root, cgroups and Debian's static busybox; without them a case says so and passes. The vm half takes a boot a case, and
//! needs `caisson-vmm` and the guest's files (`cargo xtask build`): `cargo xtask test` runs it in the lab, `--ignored` here.

#[path = "contract/bench.rs"]
mod bench;
#[path = "contract/files.rs"]
mod files;
#[path = "contract/life.rs"]
mod life;
#[path = "contract/load.rs"]
mod load;
#[path = "contract/loss.rs"]
mod loss;
#[path = "contract/mounts.rs"]
mod mounts;
#[path = "contract/streams.rs"]
mod streams;

/// Runs cases under every isolation that there is.
#[macro_export]
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod container {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    if let Some(bench) = $crate::bench::Bench::new(caisson_runtime::Isolation::Container) {
                        super::$name(&bench).await;
                        bench.assert_clean().await;
                    }
                }
            )*
        }
        mod microvm {
            $(
                #[ignore = "a microVM's boot each: in the lab"]
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    if let Some(bench) = $crate::bench::Bench::new(caisson_runtime::Isolation::Vm) {
                        super::$name(&bench).await;
                        bench.assert_clean().await;
                    }
                }
            )*
        }
    };
}
