//! Looking: inspect, top, stats, events, diff, port, info, version, system df, templates.

use std::time::Duration;

use caisson_tests::{IMAGE, Test, cases};

fn inspect_has_dockers_fields(t: &Test) {
    let name = t.unique("i");
    let id = t.sleeper(&[
        "--name",
        &name,
        "-e",
        "A=1",
        "-m",
        "64m",
        "--hostname",
        "box",
    ]);
    let all = t.inspect_json(&id);
    assert_eq!(all["Id"], id.as_str());
    assert_eq!(all["Name"], format!("/{name}"));
    assert_eq!(all["Path"], "sleep");
    assert_eq!(all["Args"][0], "1000");
    assert_eq!(all["Config"]["Image"], IMAGE);
    assert_eq!(all["Config"]["Hostname"], "box");
    assert_eq!(all["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(all["State"]["Running"], true);
    assert!(
        all["Image"]
            .as_str()
            .is_some_and(|s| s.starts_with("sha256:"))
    );
    assert!(all["State"]["Pid"].as_u64().is_some_and(|pid| pid > 1));
    assert!(
        all["Config"]["Env"]
            .as_array()
            .is_some_and(|env| env.iter().any(|e| e == "A=1"))
    );
    for field in [
        "Created",
        "LogPath",
        "Driver",
        "Platform",
        "Mounts",
        "NetworkSettings",
        "GraphDriver",
        "RestartCount",
        "HostsPath",
        "ResolvConfPath",
        "HostnamePath",
    ] {
        assert!(!all[field].is_null(), "no {field} in {all}");
    }
}

fn inspect_several_and_types(t: &Test) {
    let ids = [t.create(&[IMAGE]), t.create(&[IMAGE])];
    let outcome = t.cli(&["inspect", "--format", "{{.Id}}", &ids[0], &ids[1]]);
    outcome.ok().prints(&format!("{}\n{}\n", ids[0], ids[1]));
    t.cli(&["inspect", "--type", "image", &ids[0]]).fails();
    t.cli(&[
        "inspect",
        "--type",
        "image",
        "--format",
        "{{.Os}}/{{.Architecture}}",
        IMAGE,
    ])
    .ok()
    .prints("linux/amd64\n");
    let partly = t.cli(&["inspect", "--format", "{{.Id}}", &ids[0], "missing"]);
    partly.code(1).has(&ids[0]);
    let size = t.cli(&["inspect", "-s", "--format", "{{.SizeRootFs}}", &ids[0]]);
    assert!(
        size.ok()
            .trimmed()
            .parse::<u64>()
            .is_ok_and(|bytes| bytes > 1 << 20),
        "{}",
        size.dump()
    );
}

fn templates(t: &Test) {
    let id = t.create(&["-e", "X=1", "-l", "key=value", IMAGE, "a", "b"]);
    for (format, want) in [
        ("{{.Config.Cmd}}", "[a b]"),
        ("{{json .Config.Cmd}}", r#"["a","b"]"#),
        ("{{range .Config.Cmd}}<{{.}}>{{end}}", "<a><b>"),
        (r#"{{index .Config.Labels "key"}}"#, "value"),
        ("{{len .Config.Cmd}}", "2"),
        (r#"{{if .State.Running}}yes{{else}}no{{end}}"#, "no"),
        (r#"{{join .Config.Cmd "+"}}"#, "a+b"),
        ("{{upper .State.Status}}", "CREATED"),
        (
            r#"{{printf "%s-%d" .State.Status .State.ExitCode}}"#,
            "created-0",
        ),
    ] {
        assert_eq!(t.inspect(&id, format), want, "{format}");
    }
    t.cli(&["inspect", "--format", "{{.Nonsense", &id]).fails();
}

fn top(t: &Test) {
    let id = t.start_sh(&[], "sleep 1234 & sleep 5678");
    t.eventually("both sleep", || {
        let names = t.cli(&["top", &id, "-o", "pid,comm"]).out();
        names.lines().filter(|line| line.ends_with("sleep")).count() == 2
    });
    let outcome = t.cli(&["top", &id]);
    for text in ["UID", "PID", "CMD", "sleep 1234", "root"] {
        outcome.ok().has(text);
    }
    let outcome = t.cli(&["top", &id, "-o", "pid,comm"]);
    assert_eq!(outcome.ok().out().lines().count(), 3, "{}", outcome.dump());
    let stopped = t.create(&[IMAGE]);
    t.cli(&["top", &stopped])
        .code(1)
        .complains(&["is not running"]);
}

fn stats_once(t: &Test) {
    let id = t.sleeper(&["-m", "64m"]);
    let outcome = t.cli(&["stats", "--no-stream", &id]);
    for text in [
        "CONTAINER ID",
        "CPU %",
        "MEM USAGE / LIMIT",
        "PIDS",
        "64MiB",
        &id[..12],
    ] {
        outcome.ok().has(text);
    }
    let outcome = t.cli(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.PIDs}} {{.Name}}",
        &id,
    ]);
    assert!(outcome.ok().out().starts_with("1 "), "{}", outcome.dump());
}

fn stats_see_the_work(t: &Test) {
    let id = t.start_sh(&["--cpus", "0.1"], "while :; do :; done");
    t.eventually("cpu time is seen", || {
        let percent = t
            .cli(&["stats", "--no-stream", "--format", "{{.CPUPerc}}", &id])
            .ok()
            .trimmed();
        percent
            .trim_end_matches('%')
            .parse::<f64>()
            .is_ok_and(|p| (1.0..40.0).contains(&p))
    });
    t.eventually("throttling is seen", || {
        let stats = t
            .rest(
                "GET",
                &format!("/containers/{id}/stats?stream=0&one-shot=1"),
                None,
            )
            .json();
        assert!(
            stats["cpu_stats"]["system_cpu_usage"]
                .as_u64()
                .is_some_and(|n| n > 0),
            "{stats}"
        );
        stats["cpu_stats"]["throttling_data"]["throttled_periods"]
            .as_u64()
            .is_some_and(|n| n > 0)
    });
}

fn events_tell_the_life(t: &Test) {
    let name = t.unique("e");
    let filter = format!("container={name}");
    let client = t.background(&[
        "events",
        "--filter",
        &filter,
        "--format",
        "{{.Type}} {{.Action}}",
    ]);
    t.settle(500);
    t.run(&["--name", &name, IMAGE, "sh", "-c", "exit 5"])
        .code(5);
    t.cli(&["rm", &name]).ok();
    for action in ["create", "start", "die", "destroy"] {
        client.expect(&format!("container {action}\n"));
    }
}

fn events_of_the_past(t: &Test) {
    let name = t.unique("e");
    t.run(&["--name", &name, IMAGE, "sh", "-c", "exit 5"])
        .code(5);
    std::thread::sleep(Duration::from_millis(1100)); // the client counts in whole seconds
    let filter = format!("container={name}");
    let outcome = t.cli(&[
        "events",
        "--since",
        "10m",
        "--until",
        "0s",
        "--filter",
        &filter,
        "--filter",
        "event=die",
    ]);
    outcome
        .ok()
        .has("container die")
        .has("exitCode=5")
        .lacks("container create");
    let json = t.cli(&[
        "events",
        "--since",
        "10m",
        "--until",
        "0s",
        "--filter",
        &filter,
        "--format",
        "{{json .}}",
    ]);
    json.ok()
        .has(r#""Action":"create""#)
        .has(r#""Type":"container""#);
}

fn diff(t: &Test) {
    let id = t.start_sh(&[], "echo x > /new; mkdir /dir; echo y > /dir/inner; rm /etc/os-release; echo more >> /etc/passwd");
    t.cli(&["wait", &id]).ok();
    let outcome = t.cli(&["diff", &id]);
    let mut lines: Vec<String> = outcome.ok().out().lines().map(str::to_string).collect();
    lines.sort();
    assert_eq!(
        lines,
        [
            "A /dir",
            "A /dir/inner",
            "A /new",
            "C /etc",
            "C /etc/passwd",
            "D /etc/os-release"
        ]
    );
}

fn diff_of_an_unchanged_container(t: &Test) {
    let id = t.create(&[IMAGE]);
    t.cli(&["diff", &id]).ok().prints("");
}

fn port_is_empty(t: &Test) {
    let id = t.sleeper(&[]);
    t.cli(&["port", &id]).ok().prints("");
}

fn version_and_info(t: &Test) {
    t.cli(&["version", "--format", "{{.Server.Os}}/{{.Server.Arch}}"])
        .ok()
        .prints("linux/amd64\n");
    let version = t.cli(&["version"]);
    version.ok().has("Client").has("Server");
    let info = t.cli(&["info"]);
    for text in [
        "Containers:",
        "Images:",
        "Server Version:",
        "Cgroup Version:",
        "Kernel Version:",
        "Total Memory:",
    ] {
        info.ok().has(text);
    }
    t.cli(&["info", "--format", "{{.OSType}} {{.DockerRootDir}}"])
        .ok()
        .prints(&format!("linux {}\n", t.daemon.data_root().display()));
}

fn system_df(t: &Test) {
    let outcome = t.cli(&["system", "df"]);
    for text in [
        "TYPE",
        "TOTAL",
        "ACTIVE",
        "SIZE",
        "RECLAIMABLE",
        "Images",
        "Containers",
        "Local Volumes",
    ] {
        outcome.ok().has(text);
    }
    t.cli(&["system", "df", "-v"]).ok().has("caisson/toolbox");
}

fn api_negotiation(t: &Test) {
    let ping = t.rest("GET", "/_ping", None);
    assert_eq!(ping.status, 200);
    let head = ping.head.to_lowercase();
    for header in ["api-version:", "ostype: linux", "server:"] {
        assert!(head.contains(header), "no {header} in {head}");
    }
    assert_eq!(t.rest("GET", "/v1.41/info", None).status, 200);
    assert_eq!(t.rest("GET", "/v1.99/info", None).status, 400);
    assert_eq!(t.rest("GET", "/no/such/thing", None).status, 404);
    let missing = t.rest("GET", "/v1.41/containers/missing/json", None);
    assert_eq!(missing.status, 404);
    assert_eq!(missing.message(), "No such container: missing");
}

fn api_status_codes(t: &Test) {
    let id = t.sleeper(&[]);
    let post = |path: &str| {
        t.rest("POST", &format!("/v1.41/containers/{path}"), None)
            .status
    };
    assert_eq!(post(&format!("{id}/start")), 304);
    assert_eq!(post(&format!("{id}/stop?t=0")), 204);
    assert_eq!(post(&format!("{id}/stop?t=0")), 304);
    assert_eq!(post(&format!("{id}/kill")), 409);
    assert_eq!(post(&format!("{id}/pause")), 409);
    assert_eq!(post("missing/start"), 404);
    let create = |body| t.rest("POST", "/v1.41/containers/create", Some(&body));
    assert_eq!(
        create(serde_json::json!({"Image": "nobody/knows:this"})).status,
        404
    );
    let glass = serde_json::json!({"Image": IMAGE, "HostConfig": {"Isolation": "glass"}});
    assert_eq!(
        create(glass).status,
        if t.is_reference() { 500 } else { 400 }
    );
    assert_eq!(
        t.rest("DELETE", &format!("/v1.41/containers/{id}"), None)
            .status,
        204
    );
    assert_eq!(
        t.rest("DELETE", &format!("/v1.41/containers/{id}"), None)
            .status,
        404
    );
}

cases![
    inspect_has_dockers_fields,
    inspect_several_and_types,
    templates,
    top.core(),
    stats_once.core(),
    stats_see_the_work,
    events_tell_the_life,
    events_of_the_past,
    diff.core(),
    diff_of_an_unchanged_container,
    port_is_empty,
    version_and_info,
    system_df,
    api_negotiation.clients(caisson_tests::case::Clients::Native),
    api_status_codes.clients(caisson_tests::case::Clients::Native),
];
