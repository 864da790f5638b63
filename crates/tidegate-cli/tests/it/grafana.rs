//! The dashboard has the shape that Grafana reads. No test has a Grafana, so what it would refuse, hide or show empty is looked
//! for in the file. What the panels ask is held against `/metrics` in `deploy.rs`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::documents::page;

pub(crate) const DASHBOARD: &str = "deploy/grafana/tidegate.json";

/// How many columns Grafana has.
const COLUMNS: u64 = 24;
/// What Grafana puts in by itself.
const BUILT_IN: [&str; 1] = ["__rate_interval"];

pub(crate) fn dashboard() -> Value {
    serde_json::from_str(&page(DASHBOARD)).unwrap()
}

/// What is wrong with the shape of a dashboard.
fn wrong(dashboard: &Value) -> Vec<String> {
    let mut wrong = of_whole(dashboard);
    let panels = list(&dashboard["panels"]);
    let mut ids = BTreeSet::new();
    for panel in panels {
        match panel["id"].as_u64() {
            None => wrong.push(format!("{} has no id", panel["title"])),
            Some(id) if !ids.insert(id) => wrong.push(format!("two panels have the id {id}")),
            Some(_) => {}
        }
        wrong.extend(of_panel(panel).into_iter().map(|what| format!("{}: {what}", panel["title"])));
    }
    wrong.extend(of_places(panels));
    wrong.extend(of_variables(dashboard));
    wrong
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

fn of_whole(dashboard: &Value) -> Vec<String> {
    let is_uid = |uid: &str| {
        (1..=40).contains(&uid.len()) && uid.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
    };
    let rules = [
        ("no title", is_text(&dashboard["title"])),
        ("no uid that can stand in an address", dashboard["uid"].as_str().is_some_and(is_uid)),
        ("no schemaVersion", dashboard["schemaVersion"].is_u64()),
        ("an id, which is a number of another Grafana", dashboard["id"].is_null()),
        ("no panels", !list(&dashboard["panels"]).is_empty()),
    ];
    rules.into_iter().filter(|(_, holds)| !holds).map(|(what, _)| format!("the dashboard has {what}")).collect()
}

fn of_panel(panel: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    if !is_text(&panel["title"]) {
        wrong.push("it has no title".to_owned());
    }
    match panel["type"].as_str().unwrap_or_default() {
        // The panels of a row that is folded stand within it, where no other check looks.
        "row" if panel["collapsed"] != false || panel["panels"] != json!([]) => {
            wrong.push("the row is folded".to_owned())
        }
        "row" => {}
        "stat" | "timeseries" => wrong.extend(of_graph(panel)),
        other => wrong.push(format!("its type is {other:?}")),
    }
    wrong
}

fn of_graph(panel: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let shape = panel["fieldConfig"]["defaults"].is_object()
        && panel["fieldConfig"]["overrides"].is_array()
        && panel["options"].is_object();
    if !shape {
        wrong.push("it has no fieldConfig with defaults and overrides, or no options".to_owned());
    }
    if !is_asked_of_the_chosen(panel) {
        wrong.push("its data source is not the one that is chosen".to_owned());
    }
    let mut letters = BTreeSet::new();
    for target in list(&panel["targets"]) {
        let letter = target["refId"].as_str().unwrap_or_default();
        if letter.is_empty() || !letters.insert(letter) {
            wrong.push(format!("its query {letter:?} is not the only one of that name"));
        }
        if !is_text(&target["expr"]) || !is_asked_of_the_chosen(target) {
            wrong.push(format!("its query {letter} has no expression, or not the data source that is chosen"));
        }
    }
    if letters.is_empty() {
        wrong.push("it asks nothing".to_owned());
    }
    wrong
}

/// Whether it is asked of the data source that was chosen at the top of the dashboard: that of another Grafana has another uid.
fn is_asked_of_the_chosen(asking: &Value) -> bool {
    asking["datasource"] == json!({"type": "prometheus", "uid": "${datasource}"})
}

/// Where a panel is: columns and lines, each from and to.
#[derive(Debug, Clone, Copy)]
struct Place {
    x: (u64, u64),
    y: (u64, u64),
}

impl Place {
    fn of(panel: &Value) -> Option<Self> {
        let place = &panel["gridPos"];
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|name| place[name].as_u64());
        let (x, y, w, h) = (x?, y?, w?, h?);
        (w > 0 && h > 0 && x + w <= COLUMNS).then_some(Self { x: (x, x + w), y: (y, y + h) })
    }

    fn overlaps(self, other: Self) -> bool {
        let meet = |one: (u64, u64), two: (u64, u64)| one.0 < two.1 && two.0 < one.1;
        meet(self.x, other.x) && meet(self.y, other.y)
    }
}

fn of_places(panels: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut before: Vec<(&Value, Place)> = Vec::new();
    for panel in panels {
        let title = &panel["title"];
        let Some(place) = Place::of(panel) else {
            wrong.push(format!("{title} is at no place within {COLUMNS} columns: {}", panel["gridPos"]));
            continue;
        };
        let over = before.iter().filter(|(_, other)| place.overlaps(*other));
        wrong.extend(over.map(|(other, _)| format!("{title} lies over {other}")));
        // A row has what comes after it: a panel that stands elsewhere in the file is of another row than it seems.
        let of = |place: Place| (place.y.0, place.x.0);
        if before.last().is_some_and(|(_, last)| of(place) < of(*last)) {
            wrong.push(format!("{title} comes in the file after what is below it"));
        }
        before.push((title, place));
    }
    wrong
}

fn of_variables(dashboard: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let variables = list(&dashboard["templating"]["list"]);
    let mut declared = BTreeSet::new();
    for variable in variables {
        let name = variable["name"].as_str().unwrap_or_default();
        if name.is_empty() || !declared.insert(name.to_owned()) {
            wrong.push(format!("the variable {name:?} is not the only one of that name"));
        }
        let is_sound = match variable["type"].as_str().unwrap_or_default() {
            "datasource" => variable["query"] == "prometheus",
            // Grafana asks the one and shows the other.
            "query" => is_asked_of_the_chosen(variable) && variable["query"]["query"] == variable["definition"],
            _ => false,
        };
        if !is_sound {
            wrong.push(format!("the variable {name} is of no type that there is, or asks something else"));
        }
    }
    let used = used(&dashboard["panels"]).into_iter().chain(used(&dashboard["templating"])).collect::<BTreeSet<_>>();
    let known = |name: &&String| declared.contains(*name) || BUILT_IN.contains(&name.as_str());
    wrong.extend(used.iter().filter(|name| !known(name)).map(|name| format!("there is no variable {name}")));
    wrong.extend(declared.difference(&used).map(|name| format!("nothing asks for the variable {name}")));
    wrong
}

/// The variables that stand in any text below a value: `$job`, `${datasource}`.
fn used(value: &Value) -> BTreeSet<String> {
    match value {
        Value::String(text) => (text.split('$').skip(1))
            .map(|rest| rest.strip_prefix('{').unwrap_or(rest))
            .map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect())
            // `$__all` is what the choice of everything is called.
            .filter(|name: &String| name != "__all")
            .collect(),
        Value::Array(values) => values.iter().flat_map(used).collect(),
        Value::Object(members) => members.values().flat_map(used).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => BTreeSet::new(),
    }
}

#[test]
fn the_dashboard_has_the_shape_that_grafana_reads() {
    let wrong = wrong(&dashboard());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_grafana_would_refuse_hide_or_show_empty_is_found() {
    // The first panel is a row, the second and the third stand beside each other below it.
    for (at, value, told) in [
        ("/uid", json!("tide gate"), "no uid"),
        ("/schemaVersion", json!("39"), "no schemaVersion"),
        ("/panels", json!([]), "no panels"),
        ("/panels/0/collapsed", json!(true), "the row is folded"),
        ("/panels/0/panels", json!([{}]), "the row is folded"),
        ("/panels/1/id", json!(1), "two panels have the id 1"),
        ("/panels/1/id", Value::Null, "has no id"),
        ("/panels/1/title", json!(""), "it has no title"),
        ("/panels/1/type", json!("graph"), "its type is \"graph\""),
        ("/panels/1/options", Value::Null, "no options"),
        ("/panels/1/datasource/uid", json!("of-my-grafana"), "its data source"),
        ("/panels/1/targets", json!([]), "it asks nothing"),
        ("/panels/1/targets/0/refId", json!(""), "not the only one"),
        ("/panels/1/targets/0/datasource", Value::Null, "not the data source that is chosen"),
        ("/panels/1/targets/0/expr", json!("up{job=~\"$store\"}"), "there is no variable store"),
        ("/panels/1/gridPos/w", json!(25), "at no place"),
        ("/panels/1/gridPos/h", json!(0), "at no place"),
        ("/panels/2/gridPos/x", json!(2), "lies over"),
        ("/panels/1/gridPos/y", json!(500), "comes in the file after what is below it"),
        ("/templating/list/0/query", json!("loki"), "the variable datasource is of no type"),
        ("/templating/list/1/name", json!("queue"), "the variable \"queue\" is not the only one"),
        ("/templating/list/1/definition", json!("label_values(up, job)"), "the variable job is of no type"),
        ("/templating/list/2/name", json!("line"), "nothing asks for the variable line"),
    ] {
        let mut broken = dashboard();
        *broken.pointer_mut(at).unwrap_or_else(|| panic!("nothing is at {at}")) = value;
        let wrong = wrong(&broken);
        assert!(wrong.iter().any(|wrong| wrong.contains(told)), "{at}: {wrong:?}");
    }
    let mut elsewhere = dashboard();
    elsewhere["id"] = json!(17);
    assert_eq!(wrong(&elsewhere), ["the dashboard has an id, which is a number of another Grafana"]);
}
