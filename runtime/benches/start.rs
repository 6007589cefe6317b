//! How long each step of a container's life takes above the OCI level, and what its supervisor costs.
//!
//! `cargo bench -p caisson-runtime --bench start`. Rounds are sequential; medians and the 90th percentile in milliseconds.

#![allow(missing_docs, dead_code)]

#[path = "../tests/contract/bench.rs"]
mod bench;

use std::time::{Duration, Instant};

use bench::*;
use caisson_runtime::*;

const ROUNDS: usize = 200;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("tokio");
    runtime.block_on(async {
        let Some(bench) = Bench::new(caisson_runtime::Isolation::Container) else {
            return;
        };
        let mut steps: Vec<(&str, Vec<Duration>)> = [
            "create", "spawn", "attach", "start", "output", "wait", "destroy", "all",
        ]
        .map(|s| (s, Vec::new()))
        .into();
        let mut memory = Vec::new();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            let mut last = begin;
            let mut step = 0;
            let mut lap = |steps: &mut Vec<(&str, Vec<Duration>)>| {
                let now = Instant::now();
                steps[step].1.push(now - last);
                (step, last) = (step + 1, now);
            };
            let init = ProcessId::init();
            let sandbox = bench.create().await;
            lap(&mut steps);
            sandbox
                .spawn(&init, process(&["true"]), Stdio::default(), None)
                .await
                .expect("spawned");
            lap(&mut steps);
            let io = sandbox.attach(&init, OUTPUTS).await.expect("attached");
            lap(&mut steps);
            sandbox.start(&init).await.expect("started");
            lap(&mut steps);
            collect(io).await;
            lap(&mut steps);
            sandbox.wait(&init).await.expect("ended");
            lap(&mut steps);
            sandbox.destroy(Duration::ZERO).await.expect("destroyed");
            lap(&mut steps);
            steps[7].1.push(begin.elapsed());
        }
        let mut idle = Vec::new();
        for _ in 0..20 {
            idle.push(bench.running("exec sleep 1000").await);
        }
        for sandbox in &idle {
            memory.push(sandbox.stats().await.expect("stats").overhead.memory_detail);
        }
        for sandbox in idle {
            sandbox.destroy(Duration::ZERO).await.expect("destroyed");
        }
        for (name, mut times) in steps {
            times.sort();
            let ms = |d: Duration| d.as_secs_f64() * 1000.0;
            println!(
                "{name:>8}  median {:6.2}  p90 {:6.2}",
                ms(times[ROUNDS / 2]),
                ms(times[ROUNDS * 9 / 10])
            );
        }
        println!("one of 20 idle supervisors: {:?}", memory[10]);
    });
}
