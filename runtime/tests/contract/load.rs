//! Many at a time, and much.

use std::time::Duration;

use caisson_runtime::*;
use futures_util::StreamExt;
use futures_util::future::join_all;

use crate::bench::*;

crate::contract! { a_hundred_at_once, much_output_to_a_slow_client, many_execs }

async fn a_hundred_at_once(bench: &Bench) {
    let runs = (0..bench.many(100, 3) as i32).map(|n| async move {
        let (output, status) = bench.run(&format!("echo {n}; exit {}", n % 100)).await;
        assert_eq!((output.out(), status.code), (format!("{n}\n"), n % 100));
    });
    join_all(runs).await;
}

async fn much_output_to_a_slow_client(bench: &Bench) {
    let bytes = bench.many(100_000_000, 2_000_000);
    let sandbox = bench.create().await;
    let init = ProcessId::init();
    let log = bench.log_path(sandbox.id());
    sandbox
        .spawn(
            &init,
            sh(&format!("yes 0123456789abcde | head -c {bytes}")),
            log_to(&log),
            None,
        )
        .await
        .expect("spawned");
    let mut slow = sandbox
        .attach(&init, OUTPUTS)
        .await
        .expect("attached")
        .output;
    let fast = tokio::spawn(collect(
        sandbox.attach(&init, OUTPUTS).await.expect("attached"),
    ));
    sandbox.start(&init).await.expect("started");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stalled = sandbox.stats().await.expect("answers meanwhile");
    let own = stalled.overhead.memory_bytes.expect("our own");
    // Beside a virtual machine's shim there is its VMM, and a kernel in it.
    let limit = bench.many(16, 512) as u64;
    assert!(
        own < limit << 20,
        "a slow client does not grow the supervisor: {own}"
    );
    let (mut received, mut pieces) = (0, 0u32);
    while let Some(piece) = slow.next().await {
        let Output::Stdout(piece) = piece.expect("output") else {
            panic!("only standard output")
        };
        let begin = received % 16;
        assert!(
            piece
                .iter()
                .zip(b"0123456789abcde\n".iter().cycle().skip(begin))
                .all(|(a, b)| a == b)
        );
        received += piece.len();
        pieces += 1;
        if pieces % 200 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(received, bytes);
    assert_eq!(fast.await.expect("collected").stdout.len(), bytes);
    assert_eq!(sandbox.wait(&init).await.expect("ended").code, 0);
    let lines = std::io::BufRead::lines(std::io::BufReader::new(
        std::fs::File::open(&log).expect("a log"),
    ))
    .count();
    assert_eq!(lines, bytes / 16);
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}

async fn many_execs(bench: &Bench) {
    let sandbox = bench.running("sleep 1000").await;
    for round in 0..bench.many(30, 2) {
        let execs = (0..10).map(|n| {
            let sandbox = &sandbox;
            async move {
                exec(
                    &**sandbox,
                    &format!("e{round}-{n}"),
                    &format!("echo {n}; exit {n}"),
                )
                .await
            }
        });
        for (n, (output, status)) in join_all(execs).await.into_iter().enumerate() {
            assert_eq!((output.out(), status.code), (format!("{n}\n"), n as i32));
        }
    }
    if bench.isolation == Isolation::Vm {
        // Too few to be forgotten.
        return sandbox.destroy(Duration::ZERO).await.expect("destroyed");
    }
    // The oldest are forgotten, the newest are not.
    assert!(sandbox.pid(&ProcessId("e0-0".into())).await.is_err());
    assert!(sandbox.pid(&ProcessId("e29-9".into())).await.is_ok());
    let records = std::fs::read_dir(bench.sandbox_dir(sandbox.id()).join("exits"))
        .expect("records")
        .count();
    assert!(records <= 260, "{records}");
    sandbox.destroy(Duration::ZERO).await.expect("destroyed");
}
