//! An engine with its directories and one image, over a runtime in memory.

use std::sync::Arc;
use std::time::Duration;

use caisson_api as api;
use caisson_engine::*;
use caisson_runtime::Runtimes;
use futures_util::StreamExt as _;

use crate::fake::{FakeRuntime, Ledger};

pub struct House {
    pub dir: tempfile::TempDir,
    pub ledger: Arc<Ledger>,
    pub engine: Option<Engine>,
    form: runtime::RootfsForm,
}

impl House {
    pub async fn new() -> House {
        House::of(runtime::RootfsForm::Overlay).await
    }

    pub async fn of(form: runtime::RootfsForm) -> House {
        let mut house = House {
            dir: tempfile::tempdir().unwrap(),
            ledger: Arc::default(),
            engine: None,
            form,
        };
        house.open().await;
        house.import().await;
        house
    }

    pub async fn try_open(&self) -> Result<Engine> {
        let config = Config::new(self.dir.path().join("data"), self.dir.path().join("run"));
        Engine::open(
            config,
            Runtimes::default().with(FakeRuntime::over(&self.ledger, self.form), || Ok(())),
        )
        .await
    }

    pub async fn open(&mut self) {
        self.engine = Some(self.try_open().await.unwrap());
    }

    /// The daemon ends (the containers do not) and a new one comes.
    pub async fn reopen(&mut self) {
        let engine = self.engine.take().unwrap();
        engine.shutdown().await;
        drop(engine);
        // The tasks let go of the lock in a moment.
        for _ in 0..200 {
            match self.try_open().await {
                Ok(engine) => {
                    self.engine = Some(engine);
                    return;
                }
                Err(e) if e.kind == ErrorKind::Conflict => {
                    tokio::time::sleep(Duration::from_millis(10)).await
                }
                Err(e) => panic!("{e}"),
            }
        }
        panic!("the lock was not let go");
    }

    async fn import(&self) {
        let mut tar = tar::Builder::new(Vec::new());
        let passwd = b"root:x:0:0::/root:/bin/sh\n";
        let mut header = tar::Header::new_ustar();
        header.set_size(passwd.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "etc/passwd", &passwd[..])
            .unwrap();
        let bytes = std::io::Cursor::new(tar.into_inner().unwrap());
        let options = ImageImportOptions {
            repository: Some("img".into()),
            ..Default::default()
        };
        let feed = self
            .engine()
            .image_import(Box::pin(bytes), options)
            .await
            .unwrap();
        feed.collect::<Vec<_>>().await;
        assert_eq!(
            self.engine()
                .images(ImageListOptions::default())
                .await
                .unwrap()
                .len(),
            1
        );
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    pub async fn create(
        &self,
        name: &str,
        command: &[&str],
        host: api::HostConfig,
    ) -> Result<String> {
        let config = api::ContainerConfig {
            image: "img".into(),
            cmd: Some(command.iter().map(|s| s.to_string()).collect()),
            ..Default::default()
        };
        let request = api::ContainerCreateBody {
            config,
            host_config: Some(host),
            networking_config: None,
        };
        let options = CreateOptions {
            name: Some(name.into()),
            platform: None,
            request,
        };
        Ok(self.engine().create_container(options).await?.id)
    }

    pub async fn run(&self, name: &str, command: &[&str], host: api::HostConfig) -> String {
        let id = self.create(name, command, host).await.unwrap();
        self.engine().start(&id).await.unwrap();
        id
    }

    pub async fn state(&self, name: &str) -> api::ContainerState {
        self.engine().inspect(name, false).await.unwrap().state
    }

    pub async fn until(&self, name: &str, status: &str) -> api::ContainerState {
        for _ in 0..500 {
            let state = self.state(name).await;
            if state.status == status {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "{name} is {} instead of {status}",
            self.state(name).await.status
        );
    }

    /// Waits until so many sandboxes are left: they go a moment after their exit is told.
    pub async fn left(&self, count: usize) {
        for _ in 0..300 {
            if self.ledger.left() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "{} sandboxes are left instead of {count}",
            self.ledger.left()
        );
    }
}

pub fn policy(name: &str, retries: i64) -> api::HostConfig {
    let restart_policy = api::RestartPolicy {
        name: name.into(),
        maximum_retry_count: retries,
    };
    api::HostConfig {
        restart_policy,
        ..Default::default()
    }
}

pub fn auto_remove() -> api::HostConfig {
    api::HostConfig {
        auto_remove: true,
        ..Default::default()
    }
}
