//! The engine over a runtime in memory: what it does with exits, names, policies, crashes; and what it leaves behind.

#![allow(clippy::unwrap_used)] // helpers of tests, which may

mod disks;
mod fake;
mod house;

use std::path::Path;
use std::time::Duration;

use caisson_api as api;
use caisson_engine::*;
use futures_util::StreamExt as _;
use house::{House, auto_remove, policy};
use tokio::io::AsyncReadExt as _;

#[tokio::test]
async fn a_container_lives_and_ends() {
    let house = House::new().await;
    let id = house
        .create("web", &["exit", "7"], Default::default())
        .await
        .unwrap();
    assert_eq!(house.state("web").await.status, "created");
    let wait = house
        .engine()
        .wait("web", WaitCondition::NextExit)
        .await
        .unwrap();
    let attached = house
        .engine()
        .attach(
            "web",
            AttachOptions {
                stream: true,
                stdout: true,
                stderr: true,
                ..Default::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(
        house.engine().start(&id[..12]).await.unwrap(),
        Outcome::Changed
    );
    assert_eq!(wait.await.unwrap().status_code, 7);
    assert_eq!(
        attached.output.count().await,
        1,
        "attached before the start, it misses nothing"
    );
    let state = house.state("web").await;
    assert_eq!(
        (state.status.as_str(), state.exit_code, state.pid),
        ("exited", 7, 0)
    );
    house.left(0).await;
    house
        .engine()
        .remove("web", RemoveOptions::default())
        .await
        .unwrap();
    assert_eq!(
        house.engine().inspect("web", false).await.unwrap_err().kind,
        ErrorKind::NotFound
    );
    let left = std::fs::read_dir(house.dir.path().join("data/containers"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "no directory is left");
}

#[tokio::test]
async fn a_missing_command_leaves_nothing_behind() {
    let house = House::new().await;
    house
        .create("bad", &["missing"], Default::default())
        .await
        .unwrap();
    let e = house.engine().start("bad").await.unwrap_err();
    assert_eq!(e.kind, ErrorKind::CommandNotFound);
    let state = house.state("bad").await;
    assert_eq!((state.status.as_str(), state.exit_code), ("created", 127));
    house.left(0).await;
}

#[tokio::test]
async fn auto_remove_removes_after_exit_and_after_a_failed_start() {
    let house = House::new().await;
    house
        .create("gone", &["exit", "3"], auto_remove())
        .await
        .unwrap();
    let wait = house
        .engine()
        .wait("gone", WaitCondition::Removed)
        .await
        .unwrap();
    house.engine().start("gone").await.unwrap();
    assert_eq!(wait.await.unwrap().status_code, 3);
    assert!(house.engine().inspect("gone", false).await.is_err());
    house
        .create("bad", &["missing"], auto_remove())
        .await
        .unwrap();
    let wait = house
        .engine()
        .wait("bad", WaitCondition::Removed)
        .await
        .unwrap();
    house.engine().start("bad").await.unwrap_err();
    assert_eq!(
        wait.await.unwrap(),
        WaitResult {
            status_code: 127,
            error: None
        }
    );
}

#[tokio::test]
async fn names_are_taken_once_and_given_back() {
    let house = House::new().await;
    house
        .create("web", &["sleep"], Default::default())
        .await
        .unwrap();
    let e = house
        .create("web", &["sleep"], Default::default())
        .await
        .unwrap_err();
    assert!(
        e.kind == ErrorKind::Conflict && e.message.contains("\"/web\" is already in use"),
        "{e}"
    );
    house.engine().rename("web", "other").await.unwrap();
    house
        .create("web", &["sleep"], Default::default())
        .await
        .unwrap();
    assert_eq!(
        house
            .engine()
            .rename("web", "other")
            .await
            .unwrap_err()
            .kind,
        ErrorKind::Conflict
    );
    let e = house
        .create("x y", &["sleep"], Default::default())
        .await
        .unwrap_err();
    assert_eq!(e.kind, ErrorKind::Invalid);
    let missing = api::ContainerCreateBody {
        config: api::ContainerConfig {
            image: "nosuch".into(),
            ..Default::default()
        },
        ..Default::default()
    };
    let options = CreateOptions {
        name: Some("free".into()),
        request: missing,
        ..Default::default()
    };
    let e = house.engine().create_container(options).await.unwrap_err();
    assert_eq!(
        (e.kind, e.message.as_str()),
        (ErrorKind::NotFound, "No such image: nosuch:latest")
    );
    house
        .create("free", &["sleep"], Default::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn vm_is_refused_and_never_weakened() {
    let house = House::new().await;
    let host = |isolation: &str| api::HostConfig {
        isolation: isolation.into(),
        ..Default::default()
    };
    let e = house
        .create("vm1", &["sleep"], host("vm"))
        .await
        .unwrap_err();
    assert!(
        e.kind == ErrorKind::NotImplemented && e.message.contains("weaker wall"),
        "{e}"
    );
    assert_eq!(
        house
            .create("vm1", &["sleep"], host("hyperv"))
            .await
            .unwrap_err()
            .kind,
        ErrorKind::Invalid
    );
    for known in ["", "default", "container"] {
        let id = house
            .create("known", &["sleep"], host(known))
            .await
            .unwrap();
        let seen = house
            .engine()
            .inspect(&id, false)
            .await
            .unwrap()
            .host_config
            .isolation;
        assert_eq!(seen, "container");
        house
            .engine()
            .remove(&id, RemoveOptions::default())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn stop_asks_then_kills() {
    let house = House::new().await;
    house.run("kind", &["term", "0"], Default::default()).await;
    assert_eq!(
        house
            .engine()
            .stop("kind", StopOptions::default())
            .await
            .unwrap(),
        Outcome::Changed
    );
    assert_eq!(house.state("kind").await.exit_code, 0);
    assert_eq!(
        house
            .engine()
            .stop("kind", StopOptions::default())
            .await
            .unwrap(),
        Outcome::Unchanged
    );
    house.run("deaf", &["sleep"], Default::default()).await;
    let options = StopOptions {
        timeout_s: Some(0),
        ..Default::default()
    };
    house.engine().stop("deaf", options).await.unwrap();
    assert_eq!(house.state("deaf").await.exit_code, 137);
    let e = house.engine().kill("deaf", None).await.unwrap_err();
    assert!(
        e.kind == ErrorKind::Conflict && e.message.contains("is not running"),
        "{e}"
    );
    assert_eq!(
        house
            .engine()
            .kill("deaf", Some("FOO"))
            .await
            .unwrap_err()
            .message,
        "Invalid signal: FOO"
    );
}

#[tokio::test]
async fn paused_containers_can_be_stopped_and_removed_by_force() {
    let house = House::new().await;
    house.run("one", &["term", "0"], Default::default()).await;
    house.engine().pause("one").await.unwrap();
    assert_eq!(
        house.engine().pause("one").await.unwrap_err().kind,
        ErrorKind::Conflict
    );
    assert_eq!(house.state("one").await.status, "paused");
    house
        .engine()
        .stop("one", StopOptions::default())
        .await
        .unwrap();
    house.run("two", &["sleep"], Default::default()).await;
    house.engine().pause("two").await.unwrap();
    assert_eq!(
        house
            .engine()
            .remove("two", RemoveOptions::default())
            .await
            .unwrap_err()
            .kind,
        ErrorKind::Conflict
    );
    house
        .engine()
        .remove(
            "two",
            RemoveOptions {
                force: true,
                ..Default::default()
            },
        )
        .await
        .unwrap();
    house.left(0).await;
}

#[tokio::test]
async fn on_failure_gives_up_after_its_retries() {
    let house = House::new().await;
    house
        .run("flaky", &["exit", "5"], policy("on-failure", 2))
        .await;
    for _ in 0..300 {
        if house.ledger.starts() == 3 && house.state("flaky").await.status == "exited" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let seen = house.engine().inspect("flaky", false).await.unwrap();
    assert_eq!(
        (
            house.ledger.starts(),
            seen.restart_count,
            seen.state.exit_code
        ),
        (3, 2, 5)
    );
}

#[tokio::test]
async fn a_user_who_stops_wins_over_always() {
    let house = House::new().await;
    house.run("up", &["term", "1"], policy("always", 0)).await;
    house
        .engine()
        .stop("up", StopOptions::default())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(house.state("up").await.status, "exited");
    house.engine().start("up").await.unwrap();
    house
        .ledger
        .end(&house.engine().inspect("up", false).await.unwrap().id, 9);
    house.until("up", "restarting").await;
    house
        .engine()
        .stop("up", StopOptions::default())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        house.state("up").await.status,
        "exited",
        "stopped while it waited to be restarted"
    );
}

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let house = House::new().await;
    let e = house.try_open().await.err().unwrap();
    assert_eq!(e.kind, ErrorKind::Conflict);
    assert!(
        e.message.contains(&std::process::id().to_string()) && e.message.contains("--data-root"),
        "{e}"
    );
}

#[tokio::test]
async fn a_new_daemon_finds_everything_again() {
    let mut house = House::new().await;
    let up = house.run("up", &["sleep"], Default::default()).await;
    let ended = house.run("ended", &["sleep"], Default::default()).await;
    let again = house.run("again", &["sleep"], policy("always", 0)).await;
    house.run("paused", &["sleep"], Default::default()).await;
    house.engine().pause("paused").await.unwrap();
    house.run("gone", &["sleep"], auto_remove()).await;
    let gone = house.engine().inspect("gone", false).await.unwrap().id;
    house
        .create("fresh", &["sleep"], Default::default())
        .await
        .unwrap();
    let engine = house.engine.take().unwrap();
    engine.shutdown().await;
    drop(engine);
    // Meanwhile nobody watches.
    house.ledger.end(&ended, 42);
    house.ledger.end(&again, 1);
    house.ledger.end(&gone, 0);
    // What a create that was cut short leaves.
    let stray = house
        .dir
        .path()
        .join("data/containers")
        .join("e".repeat(64));
    std::fs::create_dir(&stray).unwrap();
    house.engine = loop {
        match house.try_open().await {
            Ok(engine) => break Some(engine),
            Err(e) if e.kind == ErrorKind::Conflict => {
                tokio::time::sleep(Duration::from_millis(10)).await
            }
            Err(e) => panic!("{e}"),
        }
    };
    assert_eq!(house.state("up").await.status, "running");
    assert_eq!(house.engine().inspect("up", false).await.unwrap().id, up);
    let state = house.state("ended").await;
    assert_eq!((state.status.as_str(), state.exit_code), ("exited", 42));
    assert_eq!(house.state("paused").await.status, "paused");
    assert_eq!(house.state("fresh").await.status, "created");
    house.until("again", "running").await;
    assert!(
        house.engine().inspect("gone", false).await.is_err(),
        "--rm holds across daemons"
    );
    assert!(!stray.exists());
    house
        .engine()
        .stop(
            "up",
            StopOptions {
                timeout_s: Some(0),
                ..Default::default()
            },
        )
        .await
        .unwrap();
    assert_eq!(house.state("up").await.exit_code, 137);
}

#[tokio::test]
async fn copying_from_a_stopped_container_borrows_a_sandbox_and_gives_it_back() {
    let house = House::new().await;
    house
        .create("box", &["sleep"], Default::default())
        .await
        .unwrap();
    let (stat, mut tar) = house
        .engine()
        .path_read("box", Path::new("/etc/passwd"))
        .await
        .unwrap();
    assert_eq!(stat.size, 3);
    assert_eq!(house.ledger.left(), 1);
    // A start has to wait: two overlays over one upper directory must not be.
    let engine = house.engine().clone();
    let start = tokio::spawn(async move { engine.start("box").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!start.is_finished());
    let mut text = String::new();
    tar.read_to_string(&mut text).await.unwrap();
    drop(tar);
    start.await.unwrap().unwrap();
    assert_eq!(house.state("box").await.status, "running");
    house
        .engine()
        .remove(
            "box",
            RemoveOptions {
                force: true,
                ..Default::default()
            },
        )
        .await
        .unwrap();
    house.left(0).await;
}

#[tokio::test]
async fn execs_have_codes_of_their_own() {
    let house = House::new().await;
    house.run("host", &["sleep"], Default::default()).await;
    let request = |words: &[&str]| api::ExecCreateBody {
        cmd: Some(words.iter().map(|s| s.to_string()).collect()),
        attach_stdout: true,
        ..Default::default()
    };
    let exec = house
        .engine()
        .exec_create("host", request(&["exit", "5"]))
        .await
        .unwrap();
    let attached = house
        .engine()
        .exec_start(&exec, ExecStartOptions::default())
        .await
        .unwrap()
        .unwrap();
    attached.output.count().await;
    assert_eq!(
        house.engine().exec_inspect(&exec).await.unwrap().exit_code,
        Some(5)
    );
    assert_eq!(
        house
            .engine()
            .exec_start(&exec, ExecStartOptions::default())
            .await
            .err()
            .unwrap()
            .kind,
        ErrorKind::Conflict
    );
    let exec = house
        .engine()
        .exec_create("host", request(&["missing"]))
        .await
        .unwrap();
    let e = house
        .engine()
        .exec_start(&exec, ExecStartOptions::default())
        .await
        .err()
        .unwrap();
    assert_eq!(e.kind, ErrorKind::CommandNotFound);
    assert_eq!(
        house.engine().exec_inspect(&exec).await.unwrap().exit_code,
        Some(127)
    );
    house.engine().kill("host", None).await.unwrap();
    let e = house
        .engine()
        .exec_create("host", request(&["exit", "0"]))
        .await
        .unwrap_err();
    assert_eq!(e.kind, ErrorKind::Conflict);
}

#[tokio::test]
async fn events_tell_the_story_in_order() {
    let house = House::new().await;
    let since = Some(chrono::Utc::now() - chrono::TimeDelta::seconds(5));
    house
        .create("told", &["term", "0"], auto_remove())
        .await
        .unwrap();
    let wait = house
        .engine()
        .wait("told", WaitCondition::Removed)
        .await
        .unwrap();
    house.engine().start("told").await.unwrap();
    house
        .engine()
        .stop("told", StopOptions::default())
        .await
        .unwrap();
    wait.await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let filters = api::Filters::parse(r#"{"container":["told"]}"#).unwrap();
    let options = EventsOptions {
        since,
        until: Some(chrono::Utc::now()),
        filters,
    };
    let mut told: Vec<String> = house
        .engine()
        .events(options)
        .await
        .unwrap()
        .map(|e| e.action)
        .collect()
        .await;
    // `stop` is published by whoever asked for it, `destroy` by the container: their order is open.
    let stop = told.iter().position(|a| a == "stop").unwrap();
    told.remove(stop);
    assert_eq!(told, ["create", "start", "kill", "die", "destroy"]);
}

#[tokio::test]
async fn lists_and_prunes() {
    let mut house = House::new().await;
    house.run("runs", &["sleep"], Default::default()).await;
    house
        .create("waits", &["sleep"], Default::default())
        .await
        .unwrap();
    let names = |rows: Vec<api::ContainerSummary>| {
        rows.into_iter()
            .map(|r| r.names[0].clone())
            .collect::<Vec<_>>()
    };
    let list = |options| house.engine().list(options);
    assert_eq!(
        names(list(ListOptions::default()).await.unwrap()),
        ["/runs"]
    );
    let all = list(ListOptions {
        all: true,
        ..Default::default()
    })
    .await
    .unwrap();
    assert_eq!(names(all), ["/waits", "/runs"], "newest first");
    let filters = api::Filters::parse(r#"{"ancestor":["img"],"status":["created"]}"#).unwrap();
    assert_eq!(
        names(
            list(ListOptions {
                filters,
                ..Default::default()
            })
            .await
            .unwrap()
        ),
        ["/waits"]
    );
    let bad = api::Filters::parse(r#"{"colour":["red"]}"#).unwrap();
    assert_eq!(
        list(ListOptions {
            filters: bad,
            ..Default::default()
        })
        .await
        .unwrap_err()
        .kind,
        ErrorKind::Invalid
    );
    let report = house
        .engine()
        .prune_containers(Default::default())
        .await
        .unwrap();
    assert_eq!(report.containers_deleted.unwrap().len(), 1);
    assert_eq!(house.engine().counts(), (1, 0, 0));
    house.reopen().await;
    assert_eq!(
        house.engine().counts(),
        (1, 0, 0),
        "what was pruned stays away"
    );
}
