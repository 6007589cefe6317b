//! `POST /containers/prune`: everything stopped goes.

use caisson_api as api;
use chrono::{DateTime, Utc};

use crate::Engine;
use crate::container::Message;
use crate::error::{Error, Result};
use crate::records::Status;

impl Engine {
    /// `POST /containers/prune`.
    pub async fn prune_containers(
        &self,
        filters: api::Filters,
    ) -> Result<api::ContainersPruneResponse> {
        if let Some(unknown) = filters.unknown_key(&["label", "label!", "until"]) {
            return Err(Error::invalid(format!("invalid filter '{unknown}'")));
        }
        let until = filters
            .get("until")
            .first()
            .map(|u| moment(u, Utc::now()))
            .transpose()?;
        let mut deleted = Vec::new();
        let mut reclaimed: u64 = 0;
        let none = Default::default();
        for view in self.inner.views() {
            let stopped = matches!(
                view.state.status,
                Status::Created | Status::Exited | Status::Dead
            );
            let old_enough = until.is_none_or(|u| view.definition.created.0 < u);
            let labels = view.definition.config.labels.as_ref().unwrap_or(&none);
            if !(stopped && old_enough && filters.admits_labels(labels)) {
                continue;
            }
            let (size, _) = self.sizes(&view).await?;
            let Ok(container) = self.inner.container(&view.id) else {
                continue;
            };
            match container
                .ask(|reply| Message::Remove {
                    force: false,
                    reply,
                })
                .await
            {
                Ok(()) => {
                    reclaimed = reclaimed.saturating_add(u64::try_from(size).unwrap_or(0));
                    deleted.push(view.id.clone());
                }
                Err(e) => {
                    tracing::warn!(container = view.id, error = %e, "a container could not be pruned")
                }
            }
        }
        let attributes = [("reclaimed".to_string(), reclaimed.to_string())].into();
        self.publish(api::EventMessage::now("container", "prune", "", attributes));
        Ok(api::ContainersPruneResponse {
            containers_deleted: Some(deleted).filter(|d| !d.is_empty()),
            space_reclaimed: reclaimed,
        })
    }
}

/// `2h30m`, seconds since 1970, or a time as RFC 3339.
pub(crate) fn moment(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let bad = || {
        Error::invalid(format!(
            "invalid filter 'until={text}': use a duration such as 24h, seconds since 1970, or a time"
        ))
    };
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.with_timezone(&Utc));
    }
    if let Ok(seconds) = text.parse::<f64>() {
        let nanos = (seconds.fract() * 1e9) as u32;
        return DateTime::from_timestamp(seconds as i64, nanos).ok_or_else(bad);
    }
    if let Ok(date) = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Ok(date.and_time(chrono::NaiveTime::MIN).and_utc());
    }
    if let Ok(time) = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S") {
        return Ok(time.and_utc());
    }
    let mut total = chrono::TimeDelta::zero();
    let mut rest = text;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: i64 = rest[..digits].parse().map_err(|_| bad())?;
        let unit = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |n| digits + n);
        let step = match &rest[digits..unit] {
            "h" => chrono::TimeDelta::try_hours(number),
            "m" => chrono::TimeDelta::try_minutes(number),
            "s" => chrono::TimeDelta::try_seconds(number),
            "ms" => chrono::TimeDelta::try_milliseconds(number),
            _ => None,
        };
        let sum = step.and_then(|step| total.checked_add(&step));
        total = sum.ok_or_else(bad)?;
        rest = &rest[unit..];
    }
    now.checked_sub_signed(total).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let now: DateTime<Utc> = "2026-01-02T03:04:05Z".parse().unwrap();
        let at = |text: &str| {
            moment(text, now)
                .unwrap()
                .to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
        };
        assert_eq!(at("1h30m"), "2026-01-02T01:34:05Z");
        assert_eq!(at("0"), "1970-01-01T00:00:00Z");
        assert_eq!(at("2025-12-31"), "2025-12-31T00:00:00Z");
        assert_eq!(at("2025-12-31T01:02:03Z"), "2025-12-31T01:02:03Z");
        let far = "2562047788015h".repeat(2);
        for bad in ["", "yesterday", "10x", "h", &far] {
            assert!(moment(bad, now).is_err(), "{bad}");
        }
    }
}
