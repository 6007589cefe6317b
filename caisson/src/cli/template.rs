//! `--format`: Go templates over JSON with Docker's functions, Docker's error texts, and field order kept for `{{json .}}`.
//!
//! gotmpl's maps are sorted; JSON objects have an order people see in `{{json .}}`. [`Data`] therefore remembers, for each map it
//! made, the JSON it came from; the `json` function looks it up by the map's address, which clones share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use gotmpl::{MissingKey, Template, TemplateError, Value};
use serde_json::Value as Json;

type Origins = Arc<Mutex<HashMap<usize, Json>>>;

/// A parsed format.
pub struct Format {
    template: Template,
    origins: Origins,
    /// The name of the Go type in "can't evaluate field"; empty for raw JSON.
    type_name: &'static str,
}

/// Template data with its JSON origin remembered.
pub struct Data(Value);

fn address(map: &Arc<std::collections::BTreeMap<Arc<str>, Value>>) -> usize {
    Arc::as_ptr(map) as usize
}

fn text(value: impl Into<String>) -> Value {
    Value::String(Arc::from(value.into()))
}

fn argument(args: &[Value], at: usize) -> Result<&Value, TemplateError> {
    args.get(at)
        .ok_or_else(|| TemplateError::Exec("not enough arguments for function".to_owned()))
}

fn string_argument(args: &[Value], at: usize) -> Result<String, TemplateError> {
    argument(args, at).map(ToString::to_string)
}

fn title(value: &str) -> String {
    let mut start = true;
    value
        .chars()
        .map(|c| {
            let out = if start {
                c.to_uppercase().next().unwrap_or(c)
            } else {
                c
            };
            start = !c.is_alphanumeric() && c != '_' && c != '\'';
            out
        })
        .collect()
}

/// Encodes as Go's `encoding/json` does without HTML escaping.
fn to_json(value: &Value, origins: &Origins) -> Json {
    match value {
        Value::Nil => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(i) => Json::from(*i),
        Value::Uint(u) => Json::from(*u),
        Value::Float(f) => serde_json::Number::from_f64(*f).map_or(Json::Null, Json::Number),
        Value::String(s) => Json::String(s.to_string()),
        Value::List(items) => Json::Array(items.iter().map(|v| to_json(v, origins)).collect()),
        Value::Map(map) => {
            let known = origins
                .lock()
                .ok()
                .and_then(|o| o.get(&address(map)).cloned());
            known.unwrap_or_else(|| {
                let visible = map.iter().filter(|(_, v)| !v.is_function());
                Json::Object(
                    visible
                        .map(|(k, v)| (k.to_string(), to_json(v, origins)))
                        .collect(),
                )
            })
        }
        _ => Json::Null,
    }
}

/// Writes `<`, `>` and `&` as Go's JSON encoder does by default.
pub fn escape_html(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

/// Docker gives every template these.
fn with_functions(template: Template, origins: &Origins) -> Template {
    let seen = Arc::clone(origins);
    template
        .func("json", move |args| {
            let value = argument(args, 0)?;
            let json = to_json(value, &seen).to_string();
            // Go's encoder escapes HTML in whole rows, and nowhere else.
            let row = matches!(value, Value::Map(map) if map.values().any(Value::is_function));
            Ok(text(if row { escape_html(&json) } else { json }))
        })
        .func("split", |args| {
            let (value, separator) = (string_argument(args, 0)?, string_argument(args, 1)?);
            let parts: Vec<Value> = value.split(separator.as_str()).map(text).collect();
            Ok(Value::List(parts.into()))
        })
        .func("join", |args| {
            let separator = string_argument(args, 1)?;
            match argument(args, 0)? {
                Value::List(items) => {
                    let parts: Vec<String> = items.iter().map(ToString::to_string).collect();
                    Ok(text(parts.join(&separator)))
                }
                Value::Nil => Ok(text("")),
                other => Err(TemplateError::Exec(format!(
                    "error calling join: expected a list, got {}",
                    other.type_name()
                ))),
            }
        })
        .func("title", |args| Ok(text(title(&string_argument(args, 0)?))))
        .func("lower", |args| {
            Ok(text(string_argument(args, 0)?.to_lowercase()))
        })
        .func("upper", |args| {
            Ok(text(string_argument(args, 0)?.to_uppercase()))
        })
        .func("pad", |args| {
            let (value, before, after) =
                (string_argument(args, 0)?, count(args, 1)?, count(args, 2)?);
            if value.is_empty() {
                return Ok(text(""));
            }
            Ok(text(format!(
                "{}{value}{}",
                " ".repeat(before),
                " ".repeat(after)
            )))
        })
        .func("truncate", |args| {
            let (value, length) = (string_argument(args, 0)?, count(args, 1)?);
            Ok(text(value.chars().take(length).collect::<String>()))
        })
        .func("index", |args| {
            let mut value = argument(args, 0)?.clone();
            for key in &args[1..] {
                value = match (&value, key) {
                    (Value::Map(map), Value::String(name)) => {
                        map.get(name.as_ref()).cloned().unwrap_or_else(|| text(""))
                    }
                    (Value::Nil, _) => {
                        return Err(TemplateError::Exec(
                            "error calling index: index of untyped nil".to_owned(),
                        ));
                    }
                    _ => value.index(key)?,
                };
            }
            Ok(value)
        })
}

fn count(args: &[Value], at: usize) -> Result<usize, TemplateError> {
    let number = argument(args, at)?.as_int().unwrap_or(0);
    Ok(usize::try_from(number).unwrap_or(0))
}

impl Format {
    /// Parses a format for rows whose Go type is called `type_name` in errors (empty: raw JSON).
    pub fn parse(source: &str, type_name: &'static str) -> Result<Self, String> {
        let source = match source {
            "json" => "{{json .}}",
            other => other,
        };
        let origins: Origins = Arc::default();
        let template = with_functions(Template::new("").missing_key(MissingKey::Error), &origins);
        // Methods with an argument are functions held in the row.
        let source = source
            .replace(".Label \"", "call .Label \"")
            .replace(".Label `", "call .Label `");
        let template = template
            .parse(&source)
            .map_err(|e| explain(&e, &source, type_name))?;
        Ok(Format {
            template,
            origins,
            type_name,
        })
    }

    /// Turns JSON into template data.
    pub fn data(&self, json: &Json) -> Data {
        Data(self.value(json))
    }

    fn value(&self, json: &Json) -> Value {
        match json {
            Json::Null => Value::Nil,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
                (Some(i), _, _) => Value::Int(i),
                (None, Some(u), _) => Value::Uint(u),
                (None, None, f) => Value::Float(f.unwrap_or(0.0)),
            },
            Json::String(s) => text(s.as_str()),
            Json::Array(items) => Value::List(
                items
                    .iter()
                    .map(|v| self.value(v))
                    .collect::<Vec<_>>()
                    .into(),
            ),
            Json::Object(fields) => {
                let mut map: std::collections::BTreeMap<Arc<str>, Value> = fields
                    .iter()
                    .map(|(k, v)| (Arc::from(k.as_str()), self.value(v)))
                    .collect();
                // Docker's templates name Go fields, which differ from the JSON here only.
                if let Some(version) = map.get("ApiVersion").cloned() {
                    map.insert(Arc::from("APIVersion"), version);
                }
                let map = Arc::new(map);
                if let Ok(mut origins) = self.origins.lock() {
                    origins.insert(address(&map), json.clone());
                }
                Value::Map(map)
            }
        }
    }

    /// A row of text fields, and its labels for `{{.Label "name"}}`.
    pub fn row(
        &self,
        fields: &[(&str, String)],
        labels: Option<&std::collections::BTreeMap<String, String>>,
    ) -> Data {
        let mut map: std::collections::BTreeMap<Arc<str>, Value> = fields
            .iter()
            .map(|(k, v)| (Arc::from(*k), cell(k, v)))
            .collect();
        let labels = labels.cloned().unwrap_or_default();
        map.insert(
            Arc::from("Label"),
            Value::Function(Arc::new(move |args| {
                let name = string_argument(args, 0)?;
                Ok(text(labels.get(&name).cloned().unwrap_or_default()))
            })),
        );
        Data(Value::Map(Arc::new(map)))
    }

    /// The header of a table: each field its column's name, each label its own.
    pub fn header(&self, columns: &[(&str, String)]) -> Data {
        let Data(Value::Map(map)) = self.row(columns, None) else {
            return Data(Value::Nil);
        };
        let mut map = map.as_ref().clone();
        map.insert(
            Arc::from("Label"),
            Value::Function(Arc::new(|args| {
                let name = string_argument(args, 0)?;
                let last = name.rsplit('.').next().unwrap_or(&name).to_owned();
                Ok(text(last.replace(['-', '_'], " ")))
            })),
        );
        Data(Value::Map(Arc::new(map)))
    }

    /// Executes the template.
    pub fn render(&self, data: &Data) -> Result<String, String> {
        self.template
            .execute_to_string(&data.0)
            .map_err(|e| explain(&e, "", self.type_name))
    }
}

/// A row's field: text, but for the one field that is a boolean in Docker's JSON.
fn cell(name: &str, value: &str) -> Value {
    match (name, value) {
        ("Current", "true" | "false") => Value::Bool(value == "true"),
        _ => text(value),
    }
}

/// Words errors as Go's text/template does.
fn explain(error: &TemplateError, source: &str, type_name: &str) -> String {
    match error {
        TemplateError::MissingKey { key } if type_name.is_empty() => {
            format!(
                "template: :1:2: executing \"\" at <.{key}>: map has no entry for key \"{key}\""
            )
        }
        TemplateError::MissingKey { key } => {
            format!(
                "template: :1:2: executing \"\" at <.{key}>: can't evaluate field {key} in type {type_name}"
            )
        }
        TemplateError::UndefinedFunction(name) => {
            format!("template: :1: function \"{name}\" not defined")
        }
        TemplateError::Parse { line, message, .. } | TemplateError::Lex { line, message, .. } => {
            let unclosed = source.matches("{{").count() > source.matches("}}").count();
            let message = if unclosed {
                "unclosed action"
            } else {
                message.as_str()
            };
            format!("template: :{line}: {message}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, data: &Json) -> Result<String, String> {
        let format = Format::parse(source, "")?;
        let data = format.data(data);
        format.render(&data)
    }

    #[test]
    fn docker_functions() {
        let data = json!({"Name": "/web", "Tags": ["a", "b"], "N": 3, "Labels": {"x.y": "z"}, "Z": {"b": 1, "a": null}, "Nil": null});
        for (source, expected) in [
            ("{{.Name | upper}}", "/WEB"),
            ("{{join .Tags \", \"}}", "a, b"),
            ("{{json .Z}}", r#"{"b":1,"a":null}"#),
            (
                "{{json .}}",
                r#"{"Name":"/web","Tags":["a","b"],"N":3,"Labels":{"x.y":"z"},"Z":{"b":1,"a":null},"Nil":null}"#,
            ),
            ("{{json .Z.a}}", "null"),
            ("{{index .Labels \"x.y\"}}", "z"),
            ("{{index .Labels \"none\"}}", ""),
            ("{{index .Tags 1}}", "b"),
            ("{{len .Tags}}", "2"),
            ("{{truncate .Name 2}}", "/w"),
            ("{{title \"hello world\"}}", "Hello World"),
            ("{{index (split .Name \"/\") 1}}", "web"),
            ("{{pad .Name 1 2}}", " /web  "),
            ("{{range .Tags}}{{println .}}{{end}}", "a\nb\n"),
            ("{{if eq .N 3}}three{{end}}", "three"),
            ("{{range $k, $v := .Labels}}{{$k}}={{$v}}{{end}}", "x.y=z"),
            ("{{printf \"%.3s\" .Name}}", "/we"),
        ] {
            assert_eq!(render(source, &data).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn errors_read_like_go() {
        assert_eq!(
            render("{{.Foo}}", &json!({})).expect_err("missing"),
            "template: :1:2: executing \"\" at <.Foo>: map has no entry for key \"Foo\""
        );
        assert_eq!(
            render("{{.ID", &json!({})).expect_err("open"),
            "template: :1: unclosed action"
        );
        assert_eq!(
            render("{{foo .}}", &json!({})).expect_err("no function"),
            "template: :1: function \"foo\" not defined"
        );
    }

    #[test]
    fn rows_are_text_with_labels() {
        let labels = [("a.b".to_owned(), "c".to_owned())].into();
        let format = Format::parse(
            "{{.ID}} {{.Label \"a.b\"}}{{.Label \"zz\"}} {{json .}}",
            "*T",
        )
        .expect("parses");
        let row = format.row(&[("ID", "1".into())], Some(&labels));
        assert_eq!(format.render(&row).as_deref(), Ok(r#"1 c {"ID":"1"}"#));
    }
}
