//! What differs between two states, field by field, in the words of the JSON output.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tallybook_events::allocation::Forward;
use tallybook_replay::state::State;

use super::json::StateView;
use super::summary;

/// How one field differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldDifference {
    /// The field, with its path.
    pub field: String,
    /// How it was; `null` when it was not there.
    pub before: Value,
    /// How it is; `null` when it is not there.
    pub after: Value,
}

/// What happened to a thing from one state to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is there now.
    Added,
    /// It is gone.
    Removed,
    /// It is different.
    Changed,
}

impl Change {
    /// As tables show it.
    pub const fn label(self) -> &'static str {
        match self {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Changed => "changed",
        }
    }
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EntityDifference {
    /// What: `container cn1/web`, `operation 0123456789ab`, ….
    pub what: String,
    /// How.
    pub change: Change,
    /// Its fields that differ.
    pub fields: Vec<FieldDifference>,
}

/// Every difference from `before` to `after`, in a fixed order. The heads are not compared.
///
/// # Errors
/// When a state has no JSON form.
pub fn states(before: &State, after: &State) -> Result<Vec<EntityDifference>, serde_json::Error> {
    let (before, after) = (entities(before)?, entities(after)?);
    let mut names: Vec<&(u8, String)> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    let mut found = Vec::new();
    for name in names {
        let (old, new) = (before.get(name), after.get(name));
        let change = match (old, new) {
            (None, _) => Change::Added,
            (Some(_), None) => Change::Removed,
            (Some(old), Some(new)) if old == new => continue,
            (Some(_), Some(_)) => Change::Changed,
        };
        let fields = fields(old, new);
        found.push(EntityDifference {
            what: name.1.clone(),
            change,
            fields,
        });
    }
    Ok(found)
}

/// The fields that name a thing.
const NAMES: [&str; 7] = [
    "name",
    "host",
    "container",
    "generation",
    "subject",
    "id",
    "short",
];

type Fields = BTreeMap<String, Value>;

/// Every thing of a state under its name, its fields flat. The number keeps the order of kinds.
fn entities(state: &State) -> Result<BTreeMap<(u8, String), Fields>, serde_json::Error> {
    let view = StateView::from(state);
    let mut all = BTreeMap::new();
    let mut add = |order: u8, name: String, value: Value| {
        let mut fields = Fields::new();
        flatten(&mut fields, String::new(), value);
        // They are in its name already.
        fields.retain(|field, _| !NAMES.contains(&field.as_str()));
        all.insert((order, name), fields);
    };
    for host in &view.hosts {
        let mut value = serde_json::to_value(host)?;
        // Counted from the containers, which are compared on their own.
        for counted in ["containers", "running"] {
            value.as_object_mut().map(|fields| fields.remove(counted));
        }
        add(0, format!("host {}", host.name), value);
    }
    for container in &view.containers {
        let name = format!("container {}/{}", container.host, container.name);
        let mut value = serde_json::to_value(container)?;
        // Compared on its own.
        value
            .as_object_mut()
            .map(|fields| fields.remove("allocation"));
        add(1, name, value);
    }
    for template in &view.templates {
        let name = format!("template {} {}", template.name, template.generation);
        add(2, name, serde_json::to_value(template)?);
    }
    for held in &view.allocations {
        let name = format!("allocation {}/{}", held.host, held.container);
        add(3, name, serde_json::to_value(held)?);
    }
    for operation in &view.operations {
        let name = format!("operation {}", operation.short);
        add(4, name, serde_json::to_value(operation)?);
    }
    for claim in &view.claims {
        add(
            5,
            format!("claim on {}", claim.subject),
            serde_json::to_value(claim)?,
        );
    }
    if let Some(inventory) = &view.inventory {
        add(6, "inventory".to_owned(), serde_json::to_value(inventory)?);
    }
    Ok(all)
}

fn flatten(fields: &mut Fields, path: String, value: Value) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let path = if path.is_empty() {
                    name
                } else {
                    format!("{path}.{name}")
                };
                flatten(fields, path, value);
            }
        }
        Value::Null => {}
        other => {
            fields.insert(path, other);
        }
    }
}

fn fields(old: Option<&Fields>, new: Option<&Fields>) -> Vec<FieldDifference> {
    let empty = Fields::new();
    let (old, new) = (old.unwrap_or(&empty), new.unwrap_or(&empty));
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    let differs = names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name));
    differs
        .map(|name| FieldDifference {
            field: name.clone(),
            before: old.get(name).cloned().unwrap_or_default(),
            after: new.get(name).cloned().unwrap_or_default(),
        })
        .collect()
}

/// A value in a table: texts without quotes, lists apart by commas.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => match Forward::deserialize(value) {
            Ok(forward) => summary::forward(&forward),
            Err(_) => {
                let fields = fields.iter();
                let fields = fields.map(|(name, value)| format!("{name} {}", shown(value)));
                fields.collect::<Vec<_>>().join(" ")
            }
        },
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        other => other.to_string(),
    }
}
