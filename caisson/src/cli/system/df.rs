//! `system df`: what takes how much space.

use std::rc::Rc;

use caisson_api::DiskUsage;

use crate::cli::command::{COMMAND, Command, Failure, Outcome};
use crate::cli::container::ps;
use crate::cli::flags::{FORMAT_TABLE, Flag, Kind, Parsed, flag};
use crate::cli::image::list;
use crate::cli::session::Session;
use crate::cli::table::{Layout, Row};
use crate::cli::{output, units};

const FLAGS: &[Flag] = &[
    flag("", "format", Kind::Text, FORMAT_TABLE),
    flag(
        "v",
        "verbose",
        Kind::Bool,
        "Show detailed information on space usage",
    ),
];

/// `system df`.
pub const COMMANDS: &[Command] = &[Command {
    paths: &["system df"],
    usage: "[OPTIONS]",
    about: "Show caisson disk usage",
    examples: &["system df -v"],
    flags: &[FLAGS],
    run: |s, p| Box::pin(df(s, p)),
    ..COMMAND
}];

async fn df(session: Rc<Session>, parsed: Parsed) -> Outcome {
    let usage: DiskUsage = session.client()?.get("/system/df").await?;
    if parsed.flag("verbose") {
        output::print(verbose(&usage)?)?;
        return Ok(0);
    }
    let layout = Layout {
        type_name: "*formatter.diskUsageContext",
        table: "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}".to_owned(),
        quiet: "",
        headers: &[
            ("Type", "TYPE"),
            ("TotalCount", "TOTAL"),
            ("Active", "ACTIVE"),
            ("Size", "SIZE"),
            ("Reclaimable", "RECLAIMABLE"),
        ],
        raw: "",
    };
    output::print(
        layout
            .render(parsed.text("format"), false, &summary(&usage))
            .map_err(Failure::new)?,
    )?;
    Ok(0)
}

fn size(bytes: i64) -> String {
    units::human_size(bytes as f64)
}

fn row(kind: &str, total: usize, active: usize, bytes: i64, reclaimable: String) -> Row {
    Row {
        fields: vec![
            ("Type", kind.to_owned()),
            ("TotalCount", total.to_string()),
            ("Active", active.to_string()),
            ("Size", size(bytes)),
            ("Reclaimable", reclaimable),
        ],
        labels: None,
    }
}

fn with_share(reclaimable: i64, total: i64) -> String {
    if total > 0 {
        format!("{} ({}%)", size(reclaimable), reclaimable * 100 / total)
    } else {
        size(reclaimable)
    }
}

/// One row for each kind of thing.
fn summary(usage: &DiskUsage) -> Vec<Row> {
    let used_images = usage.images.iter().filter(|i| i.containers > 0).count();
    let held: i64 = usage
        .images
        .iter()
        .filter(|i| i.containers > 0 && i.size != -1 && i.shared_size != -1)
        .map(|i| i.size - i.shared_size)
        .sum();
    let image_reclaimable = (usage.layers_size - held).max(0);
    let running = |c: &&caisson_api::ContainerSummary| {
        ["running", "paused", "restarting"]
            .iter()
            .any(|s| c.state.contains(s))
    };
    let container_bytes: i64 = usage.containers.iter().filter_map(|c| c.size_rw).sum();
    let container_reclaimable: i64 = usage
        .containers
        .iter()
        .filter(|c| !running(c))
        .filter_map(|c| c.size_rw)
        .sum();
    let volume = |v: &caisson_api::Volume| {
        v.usage_data
            .as_ref()
            .map_or((0, 0), |u| (u.size.max(0), u.ref_count))
    };
    let volume_bytes: i64 = usage.volumes.iter().map(|v| volume(v).0).sum();
    let volume_reclaimable: i64 = usage
        .volumes
        .iter()
        .map(volume)
        .filter(|(_, refs)| *refs == 0)
        .map(|(s, _)| s)
        .sum();
    let used_volumes = usage.volumes.iter().filter(|v| volume(v).1 > 0).count();
    let cache_bytes: i64 = usage
        .build_cache
        .iter()
        .flatten()
        .filter(|b| !b.shared)
        .map(|b| b.size)
        .sum();
    let cache_reclaimable: i64 = usage
        .build_cache
        .iter()
        .flatten()
        .filter(|b| !b.shared && !b.in_use)
        .map(|b| b.size)
        .sum();
    vec![
        row(
            "Images",
            usage.images.len(),
            used_images,
            usage.layers_size,
            with_share(image_reclaimable, usage.layers_size),
        ),
        row(
            "Containers",
            usage.containers.len(),
            usage.containers.iter().filter(running).count(),
            container_bytes,
            with_share(container_reclaimable, container_bytes),
        ),
        row(
            "Local Volumes",
            usage.volumes.len(),
            used_volumes,
            volume_bytes,
            with_share(volume_reclaimable, volume_bytes),
        ),
        row(
            "Build Cache",
            usage.build_cache.iter().flatten().count(),
            usage
                .build_cache
                .iter()
                .flatten()
                .filter(|b| b.in_use)
                .count(),
            cache_bytes,
            size(cache_reclaimable),
        ),
    ]
}

fn verbose(usage: &DiskUsage) -> Result<String, Failure> {
    let render = |table: &str, headers: &'static [(&'static str, &'static str)], rows: &[Row]| {
        let layout = Layout {
            type_name: "",
            table: table.to_owned(),
            quiet: "",
            headers,
            raw: "",
        };
        layout.render("", false, rows).map_err(Failure::new)
    };
    let images: Vec<Row> = usage
        .images
        .iter()
        .flat_map(|i| list::rows(i, true, false))
        .collect();
    let containers: Vec<Row> = usage
        .containers
        .iter()
        .map(|c| {
            ps::row(
                &caisson_api::ContainerSummary {
                    size_root_fs: None,
                    ..c.clone()
                },
                true,
            )
        })
        .collect();
    let volumes: Vec<Row> = usage
        .volumes
        .iter()
        .map(|v| {
            let (bytes, refs) = v
                .usage_data
                .as_ref()
                .map_or((-1, -1), |u| (u.size, u.ref_count));
            let or_unknown = |n: i64, t: String| if n == -1 { "N/A".to_owned() } else { t };
            Row {
                fields: vec![
                    ("Name", v.name.clone()),
                    ("Links", or_unknown(refs, refs.to_string())),
                    ("Size", or_unknown(bytes, size(bytes))),
                ],
                labels: None,
            }
        })
        .collect();
    let cache: i64 = usage
        .build_cache
        .iter()
        .flatten()
        .filter(|b| !b.shared)
        .map(|b| b.size)
        .sum();
    Ok(format!(
        "Images space usage:\n\n{}\nContainers space usage:\n\n{}\nLocal Volumes space usage:\n\n{}\nBuild cache usage: {}\n\n{}",
        render(
            "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}",
            list::HEADERS,
            &images
        )?,
        render(
            "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}",
            ps::HEADERS,
            &containers
        )?,
        render(
            "{{.Name}}\t{{.Links}}\t{{.Size}}",
            &[
                ("Name", "VOLUME NAME"),
                ("Links", "LINKS"),
                ("Size", "SIZE")
            ],
            &volumes
        )?,
        size(cache),
        "CACHE ID   CACHE TYPE   SIZE      CREATED   LAST USED   USAGE     SHARED\n"
    ))
}
