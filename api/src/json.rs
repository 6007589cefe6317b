//! Reading what clients send: `null` counts as absence everywhere, as it does for Go's decoder. Also the error body.

use serde::de::{DeserializeOwned, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Parses a request body; an empty body is an empty object. Members that are `null` are dropped before the type sees them.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    let value = if bytes.iter().all(u8::is_ascii_whitespace) {
        Value::Object(Default::default())
    } else {
        serde_json::from_slice(bytes)?
    };
    from_value(value)
}

/// Like [`from_json`] for a value already parsed.
pub fn from_value<T: DeserializeOwned>(mut value: Value) -> Result<T, serde_json::Error> {
    drop_nulls(&mut value);
    T::deserialize(value)
}

/// Maps whose members mean something by their presence alone keep it: `"ExposedPorts":{"80/tcp":null}`.
const PRESENCE_MAPS: [&str; 3] = ["ExposedPorts", "Volumes", "PortBindings"];

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            for (key, member) in map.iter_mut() {
                if PRESENCE_MAPS.contains(&key.as_str()) {
                    continue;
                }
                drop_nulls(member);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// The body of every error answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorBody {
    pub message: String,
}

/// `Cmd`, `Entrypoint` and their like: a list of strings, one string, or `null`.
pub(crate) fn string_or_list<'de, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<Vec<String>>, D::Error> {
    struct StringOrList;
    impl<'de> Visitor<'de> for StringOrList {
        type Value = Option<Vec<String>>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a string or a list of strings")
        }
        fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
            Ok(Some(vec![v.to_owned()]))
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
            d.deserialize_any(self)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = seq.next_element()? {
                list.push(item);
            }
            Ok(Some(list))
        }
    }
    d.deserialize_any(StringOrList)
}

/// For `skip_serializing_if`: Go's `omitempty`.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `omitempty` of a slice or map that may also be `null`.
pub(crate) fn is_empty<T: Emptiable>(value: &T) -> bool {
    value.is_empty_collection()
}

pub(crate) trait Emptiable {
    fn is_empty_collection(&self) -> bool;
}

impl<T> Emptiable for Option<Vec<T>> {
    fn is_empty_collection(&self) -> bool {
        self.as_ref().is_none_or(Vec::is_empty)
    }
}

impl<K, V> Emptiable for Option<std::collections::BTreeMap<K, V>> {
    fn is_empty_collection(&self) -> bool {
        self.as_ref()
            .is_none_or(std::collections::BTreeMap::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContainerCreateBody;

    #[test]
    fn null_is_absence_everywhere() {
        let body: ContainerCreateBody =
            from_json(br#"{"Hostname":null,"Tty":null,"Env":null,"HostConfig":{"Memory":null,"LogConfig":{"Type":null,"Config":null},"Ulimits":[{"Name":"nofile","Soft":null}]},"Surprise":1}"#)
                .expect("nulls are fine");
        assert_eq!(body.config.hostname, "");
        assert_eq!(
            body.host_config
                .expect("given")
                .resources
                .ulimits
                .expect("given")[0]
                .soft,
            0
        );
    }

    #[test]
    fn presence_in_a_set_survives() {
        let body: ContainerCreateBody = from_json(
            br#"{"ExposedPorts":{"80/tcp":null},"HostConfig":{"PortBindings":{"80/tcp":null}}}"#,
        )
        .expect("parses");
        assert!(
            body.config
                .exposed_ports
                .expect("given")
                .contains_key("80/tcp")
        );
        assert!(
            body.host_config
                .expect("given")
                .port_bindings
                .expect("given")
                .contains_key("80/tcp")
        );
    }

    #[test]
    fn commands_may_be_one_string() {
        let body: ContainerCreateBody =
            from_json(br#"{"Cmd":"ls","Entrypoint":["a","b"]}"#).expect("parses");
        assert_eq!(body.config.cmd, Some(vec!["ls".to_owned()]));
        assert_eq!(
            body.config.entrypoint,
            Some(vec!["a".to_owned(), "b".to_owned()])
        );
    }

    #[test]
    fn wrong_types_are_refused() {
        assert!(from_json::<ContainerCreateBody>(br#"{"Cmd":3}"#).is_err());
        assert!(from_json::<ContainerCreateBody>(b"[]").is_err());
        assert!(from_json::<ContainerCreateBody>(b"{").is_err());
    }

    #[test]
    fn an_empty_body_is_an_empty_object() {
        assert!(from_json::<ContainerCreateBody>(b" \n").is_ok());
    }
}
