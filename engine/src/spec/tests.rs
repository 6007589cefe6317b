//! Tables for the spec: one configuration in, what must and must not be in the spec out.

use super::*;
use oci_spec::runtime::Capability;

struct Case {
    config: api::ContainerConfig,
    host: api::HostConfig,
    idmap: Option<IdMap>,
    v2: bool,
}

fn case(host: api::HostConfig) -> Case {
    Case {
        config: api::ContainerConfig::default(),
        host,
        idmap: None,
        v2: true,
    }
}

fn spec(case: &Case) -> Spec {
    try_spec(case).unwrap()
}

fn try_spec(case: &Case) -> Result<Spec> {
    let namespaces = Namespaces::read(&case.host)?;
    let security = Security::read(
        case.host.security_opt.as_deref().unwrap_or_default(),
        case.host.privileged,
    )?;
    build(&Plan {
        id: "0123456789abcdef",
        config: &case.config,
        host: &case.host,
        args: vec!["true".into()],
        namespaces: &namespaces,
        security: &security,
        seccomp: None,
        mounts: &mounts::requested(&case.host)?,
        identity: accounts::Accounts::default().resolve(&case.config.user, &[])?,
        joined: Joined {
            network: Some(7),
            pid: Some(8),
            ipc: Some(9),
        },
        devices: &[],
        idmap: case.idmap,
        files: None,
        default_ulimits: &[("nofile".into(), 10, 20)],
        default_shm_size_bytes: 64 << 20,
        cgroup_parent: &case.host.resources.cgroup_parent,
        cgroup_v2: case.v2,
        console_size: None,
    })
}

fn kinds(spec: &Spec) -> Vec<(LinuxNamespaceType, Option<String>)> {
    let mut all: Vec<_> = spec
        .linux()
        .as_ref()
        .unwrap()
        .namespaces()
        .as_ref()
        .unwrap()
        .iter()
        .map(|n| (n.typ(), n.path().as_ref().map(|p| p.display().to_string())))
        .collect();
    all.sort_by_key(|(t, _)| t.to_string());
    all
}

fn mount<'a>(spec: &'a Spec, at: &str) -> Option<&'a oci_spec::runtime::Mount> {
    spec.mounts()
        .as_ref()
        .unwrap()
        .iter()
        .find(|m| m.destination() == Path::new(at))
}

fn has(spec: &Spec, at: &str, option: &str) -> bool {
    mount(spec, at).is_some_and(|m| m.options().as_ref().unwrap().iter().any(|o| o == option))
}

#[test]
fn the_default_wall() {
    let s = spec(&case(Default::default()));
    let types: Vec<String> = kinds(&s).iter().map(|(t, _)| t.to_string()).collect();
    assert_eq!(types, ["cgroup", "ipc", "mnt", "net", "pid", "uts"]);
    let linux = s.linux().as_ref().unwrap();
    assert!(
        linux
            .masked_paths()
            .as_ref()
            .unwrap()
            .contains(&"/proc/kcore".to_string())
    );
    assert!(
        linux
            .masked_paths()
            .as_ref()
            .unwrap()
            .contains(&"/sys/devices/virtual/powercap".to_string())
    );
    assert!(
        linux
            .readonly_paths()
            .as_ref()
            .unwrap()
            .contains(&"/proc/sys".to_string())
    );
    assert!(
        has(&s, "/sys", "ro")
            && has(&s, "/sys/fs/cgroup", "ro")
            && has(&s, "/dev/shm", "size=67108864")
    );
    let process = s.process().as_ref().unwrap();
    let caps = process.capabilities().as_ref().unwrap();
    assert_eq!(caps.bounding().as_ref().unwrap().len(), 14);
    assert!(
        !caps
            .bounding()
            .as_ref()
            .unwrap()
            .contains(&Capability::SysAdmin)
    );
    assert!(
        caps.ambient().as_ref().unwrap().is_empty()
            && caps.inheritable().as_ref().unwrap().is_empty()
    );
    assert_eq!(process.no_new_privileges(), Some(false));
    assert_eq!(process.rlimits().as_ref().unwrap()[0].hard(), 20);
    assert_eq!(s.hostname().as_deref(), Some("0123456789ab"));
    assert_eq!(
        linux.cgroups_path().as_deref(),
        Some(Path::new("/caisson/0123456789abcdef"))
    );
    assert!(
        linux
            .resources()
            .as_ref()
            .unwrap()
            .devices()
            .as_ref()
            .unwrap()
            .len()
            > 10
    );
}

#[test]
fn cgroup_namespace_follows_the_version() {
    let mut c = case(Default::default());
    c.v2 = false;
    assert!(
        !kinds(&spec(&c))
            .iter()
            .any(|(t, _)| *t == LinuxNamespaceType::Cgroup)
    );
    c.host.cgroupns_mode = "private".into();
    assert!(
        kinds(&spec(&c))
            .iter()
            .any(|(t, _)| *t == LinuxNamespaceType::Cgroup)
    );
}

#[test]
fn privileged_opens_the_wall() {
    let s = spec(&case(api::HostConfig {
        privileged: true,
        ..Default::default()
    }));
    let linux = s.linux().as_ref().unwrap();
    assert!(linux.masked_paths().is_none() && linux.readonly_paths().is_none());
    assert!(!has(&s, "/sys", "ro") && !has(&s, "/sys/fs/cgroup", "ro"));
    let rules = linux
        .resources()
        .as_ref()
        .unwrap()
        .devices()
        .as_ref()
        .unwrap();
    assert!(rules.len() == 1 && rules[0].allow());
    let caps = s
        .process()
        .as_ref()
        .unwrap()
        .capabilities()
        .as_ref()
        .unwrap()
        .clone();
    assert_eq!(
        caps.effective().as_ref().unwrap().len(),
        capabilities::ALL.len()
    );
}

#[test]
fn sharing_namespaces() {
    let s = spec(&case(api::HostConfig {
        network_mode: "host".into(),
        pid_mode: "container:x".into(),
        ipc_mode: "host".into(),
        uts_mode: "host".into(),
        ..Default::default()
    }));
    let all = kinds(&s);
    assert!(!all.iter().any(|(t, _)| matches!(
        t,
        LinuxNamespaceType::Network | LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts
    )));
    assert!(all.contains(&(LinuxNamespaceType::Pid, Some("/proc/8/ns/pid".into()))));
    assert_eq!(
        mount(&s, "/dev/shm").unwrap().typ().as_deref(),
        Some("bind")
    );
    assert!(s.hostname().is_none());
    let none = spec(&case(api::HostConfig {
        ipc_mode: "none".into(),
        ..Default::default()
    }));
    assert!(mount(&none, "/dev/shm").is_none());
}

#[test]
fn a_user_without_root_has_no_active_capabilities() {
    let mut c = case(Default::default());
    c.config.user = "1000:1000".into();
    let s = spec(&c);
    let caps = s
        .process()
        .as_ref()
        .unwrap()
        .capabilities()
        .as_ref()
        .unwrap()
        .clone();
    assert!(
        caps.effective().as_ref().unwrap().is_empty()
            && caps.permitted().as_ref().unwrap().is_empty()
    );
    assert_eq!(caps.bounding().as_ref().unwrap().len(), 14);
}

#[test]
fn remapping() {
    let mut c = case(Default::default());
    c.idmap = Some(IdMap {
        first_uid: 100_000,
        first_gid: 200_000,
        count: 65_536,
    });
    let s = spec(&c);
    assert!(
        kinds(&s)
            .iter()
            .any(|(t, _)| *t == LinuxNamespaceType::User)
    );
    let linux = s.linux().as_ref().unwrap();
    assert_eq!(linux.uid_mappings().as_ref().unwrap()[0].host_id(), 100_000);
    assert_eq!(linux.gid_mappings().as_ref().unwrap()[0].host_id(), 200_000);
}

#[test]
fn a_users_mount_takes_the_place_of_ours() {
    let s = spec(&case(api::HostConfig {
        binds: Some(vec!["/srv/shm:/dev/shm".into(), "/dev:/dev:rshared".into()]),
        ..Default::default()
    }));
    assert!(
        mount(&s, "/dev/pts").is_none(),
        "the host's /dev brings its own"
    );
    let shm: Vec<_> = s
        .mounts()
        .as_ref()
        .unwrap()
        .iter()
        .filter(|m| m.destination() == Path::new("/dev/shm"))
        .collect();
    assert!(shm.len() == 1 && shm[0].typ().as_deref() == Some("bind"));
    assert_eq!(
        s.linux().as_ref().unwrap().rootfs_propagation().as_deref(),
        Some("rshared")
    );
}

#[test]
fn sysctls_do_not_reach_the_host() {
    let with = |key: &str, network: &str| {
        try_spec(&case(api::HostConfig {
            sysctls: Some([(key.to_string(), "1".to_string())].into()),
            network_mode: network.into(),
            ..Default::default()
        }))
    };
    assert!(with("net.ipv4.ip_forward", "").is_ok());
    assert!(with("kernel.shmmax", "").is_ok());
    assert!(
        with("net.ipv4.ip_forward", "host")
            .unwrap_err()
            .message
            .contains("host network namespace")
    );
    assert!(
        with("kernel.panic", "")
            .unwrap_err()
            .message
            .contains("would change the host")
    );
    assert!(with("vm.swappiness", "").is_err());
}

#[test]
fn docker_flags_that_are_plain_values() {
    let mut c = case(api::HostConfig {
        readonly_rootfs: true,
        oom_score_adj: 500,
        shm_size: 1 << 20,
        security_opt: Some(vec!["no-new-privileges".into()]),
        ..Default::default()
    });
    c.host.resources.cgroup_parent = "/mine".into();
    c.config.working_dir = "/srv".into();
    c.config.tty = true;
    let s = spec(&c);
    let process = s.process().as_ref().unwrap();
    assert_eq!(s.root().as_ref().unwrap().readonly(), Some(true));
    assert_eq!(
        (
            process.oom_score_adj(),
            process.no_new_privileges(),
            process.terminal()
        ),
        (Some(500), Some(true), Some(true))
    );
    assert_eq!(process.cwd(), Path::new("/srv"));
    assert!(
        process
            .env()
            .as_ref()
            .unwrap()
            .contains(&"TERM=xterm".to_string())
    );
    assert!(has(&s, "/dev/shm", "size=1048576"));
    assert_eq!(
        s.linux().as_ref().unwrap().cgroups_path().as_deref(),
        Some(Path::new("/mine/0123456789abcdef"))
    );
    c.config.working_dir = "srv".into();
    assert!(try_spec(&c).unwrap_err().message.contains("absolute path"));
}
