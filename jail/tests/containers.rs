//! Real containers, as root: each test makes one in a root of busybox and asks it what it sees.
//!
//! They print why and pass when not run as root.

mod cell;

use cell::{Cell, is_root, said};

#[test]
fn it_is_alone_in_its_namespaces() {
    if !is_root() {
        return;
    }
    let text = said(&Cell::new(
        "echo pid=$$; hostname; ip addr show lo; ls /; readlink /proc/self/ns/net; cat /proc/1/cgroup",
    ));
    assert!(text.contains("pid=1\njailed\n"), "{text}");
    assert!(text.contains("UP") && text.contains("127.0.0.1"), "{text}");
    assert!(
        !text.contains("/caisson-jailtest"),
        "the cgroup namespace hides the path: {text}"
    );
    let ours = std::fs::read_link("/proc/self/ns/net").expect("link");
    assert!(!text.contains(ours.to_str().expect("text")));
}

#[test]
fn the_exit_code_is_the_commands() {
    if !is_root() {
        return;
    }
    assert_eq!(Cell::new("exit 7").run().expect("runs").1, 7);
    assert_eq!(
        Cell::new("kill -9 $$; sleep 1; exit 3")
            .run_with(true)
            .expect("runs")
            .1,
        137
    );
}
