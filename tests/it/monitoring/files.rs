//! Checks that the files of `dashboards/` and the pages about them agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use ddk_telemetry::metrics;
use serde::Deserialize;

use super::{
    committed_dashboard,
    dashboard::{self, RUNS},
    expressions, registered, repository, selectors,
};

/// Asserts that the committed file equals `text`. With `UPDATE=1`, which `make generate` sets, writes the file first.
fn assert_current(name: &str, text: &str) {
    let path = repository(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "{name} is not current: run make generate"
    );
}

#[test]
fn the_dashboard_and_the_table_of_metrics_are_current() {
    let text = serde_json::to_string_pretty(&dashboard::generate()).unwrap() + "\n";
    assert_current("dashboards/ddk.json", &text);
    assert_current("docs/metrics.md", &metrics::reference());
}

#[test]
fn the_panels_of_the_dashboard_have_their_places_and_their_words() {
    let dashboard = committed_dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let places: Vec<[u64; 4]> = panels
        .iter()
        .map(|panel| ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap()))
        .collect();
    let ids: BTreeSet<u64> = panels
        .iter()
        .map(|panel| panel["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), panels.len());
    for (index, [x, y, w, h]) in places.iter().enumerate() {
        assert!(x + w <= 24 && *w > 0 && *h > 0);
        for [other_x, other_y, other_w, other_h] in &places[index + 1..] {
            let beside = x + w <= *other_x || other_x + other_w <= *x;
            let above = y + h <= *other_y || other_y + other_h <= *y;
            assert!(
                beside || above,
                "{} overlaps another panel",
                panels[index]["title"]
            );
        }
    }
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let (title, targets) = (&panel["title"], panel["targets"].as_array().unwrap());
        let look_for = panel["description"].as_str().unwrap();
        assert!(look_for.len() > 8 && !targets.is_empty(), "{title}");
        for target in targets {
            assert_ne!(target["legendFormat"], "", "{title}");
            let query = target["expr"].as_str().unwrap();
            let is_chosen = query.contains(RUNS) || query.contains("ALERTS");
            assert!(is_chosen, "{title} shows runs that were not chosen");
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(rename = "name")]
    _name: String,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(default, rename = "for")]
    _for: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let text = fs::read_to_string(repository(name)).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn rules() -> Vec<Rule> {
    let file: RuleFile = read("dashboards/alerts.yml");
    file.groups
        .into_iter()
        .flat_map(|group| group.rules)
        .collect()
}

#[test]
fn every_metric_is_used_and_every_name_used_is_a_metric() {
    let of_dashboard = expressions(&committed_dashboard(), "run=~\".*\"", "1m");
    let of_rules = rules().into_iter().map(|rule| (rule.alert, rule.expr));
    let mut used = BTreeSet::new();
    for (title, expression) in of_dashboard.into_iter().chain(of_rules) {
        for selector in selectors(&expression) {
            let name = selector.name.unwrap_or_else(|| panic!("{title}: no name"));
            // Prometheus defines these itself.
            if name == "up" || name == "ALERTS" {
                continue;
            }
            let name = registered(&name).to_owned();
            let metric = metrics::ALL.iter().find(|metric| metric.name == name);
            let metric = metric.unwrap_or_else(|| panic!("{title}: {name} is not in the registry"));
            for matcher in &selector.matchers.matchers {
                let label = matcher.name.as_str();
                let of_metric = metric.labels.iter().find(|known| known.name == label);
                assert!(label == "run" || of_metric.is_some(), "{title}: {label}");
                let values = of_metric.map_or(&[][..], |label| label.values);
                assert!(
                    values.is_empty() || values.contains(&matcher.value.as_str()),
                    "{title}: {label} is never {}",
                    matcher.value
                );
            }
            used.insert(name);
        }
    }
    let unused: Vec<&str> = metrics::ALL
        .iter()
        .map(|metric| metric.name)
        .filter(|name| !used.contains(*name))
        .collect();
    assert!(unused.is_empty(), "neither shown nor watched: {unused:?}");
}

#[test]
fn every_alert_leads_to_its_section_of_the_run_book_and_has_its_two_cases() {
    let book = fs::read_to_string(repository("docs/runbook.md")).unwrap();
    let cases = fs::read_to_string(repository("dashboards/alerts_test.yml")).unwrap();
    let sections: BTreeSet<&str> = book
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let rules = rules();
    assert_eq!(rules.len(), sections.len());
    for rule in &rules {
        let name = rule.alert.as_str();
        assert!(sections.contains(name), "{name} is not in docs/runbook.md");
        assert_eq!(
            rule.annotations["runbook_url"],
            format!("docs/runbook.md#{}", name.to_lowercase())
        );
        assert!(rule.annotations["summary"].contains("{{"), "{name}");
        assert!(["critical", "warning", "info"].contains(&rule.labels["severity"].as_str()));
        for case in ["fires", "is silent"] {
            assert!(
                cases.contains(&format!("- name: {name} {case}\n")),
                "{name} {case}"
            );
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Compose {
    services: BTreeMap<String, Service>,
    volumes: BTreeMap<String, Option<BTreeMap<String, String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    image: String,
    network_mode: String,
    restart: String,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    volumes: Vec<String>,
    #[serde(default)]
    depends_on: Vec<String>,
}

#[test]
fn the_compose_file_brings_up_what_is_in_the_folder() {
    let compose: Compose = read("dashboards/compose.yml");
    assert_eq!(
        compose.services.keys().collect::<Vec<_>>(),
        ["grafana", "prometheus"]
    );
    let mut mounted = BTreeSet::new();
    for (name, service) in &compose.services {
        let (_, version) = service.image.split_once(':').expect(name);
        assert!(version.contains('.') && version != "latest", "{name}");
        assert_eq!(service.network_mode, "host", "runs listen on 127.0.0.1");
        assert_eq!(service.restart, "unless-stopped");
        for volume in &service.volumes {
            let (from, to) = volume.split_once(':').expect(volume);
            match from.strip_prefix("./") {
                Some(file) => {
                    assert!(repository("dashboards").join(file).exists(), "{volume}");
                    assert!(to.ends_with(":ro"), "{volume}");
                    mounted.insert(file);
                }
                None => assert!(compose.volumes.contains_key(from), "{volume}"),
            }
        }
        for other in &service.depends_on {
            assert!(compose.services.contains_key(other), "{name}: {other}");
        }
    }
    assert_eq!(
        mounted,
        ["alerts.yml", "ddk.json", "prometheus.yml", "provisioning"].into()
    );
    // Neither service may be reachable from outside the machine.
    let prometheus = &compose.services["prometheus"].command;
    assert!(prometheus.contains(&"--web.listen-address=127.0.0.1:9090".to_owned()));
    let grafana = &compose.services["grafana"].environment;
    assert_eq!(grafana["GF_SERVER_HTTP_ADDR"], "127.0.0.1");
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sources {
    api_version: u32,
    datasources: Vec<DataSource>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DataSource {
    name: String,
    uid: String,
    r#type: String,
    access: String,
    url: String,
    is_default: bool,
    json_data: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Providers {
    api_version: u32,
    providers: Vec<Provider>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Provider {
    name: String,
    folder: String,
    r#type: String,
    allow_ui_updates: bool,
    options: BTreeMap<String, String>,
}

#[test]
fn grafana_is_told_of_the_data_source_and_the_dashboard() {
    let sources: Sources = read("dashboards/provisioning/datasources/prometheus.yml");
    let source = &sources.datasources[0];
    assert_eq!((sources.api_version, sources.datasources.len()), (1, 1));
    assert_eq!(
        (
            source.name.as_str(),
            source.uid.as_str(),
            source.r#type.as_str()
        ),
        ("Prometheus", "prometheus", "prometheus")
    );
    assert_eq!(source.url, "http://127.0.0.1:9090");
    assert!(source.access == "proxy" && source.is_default);
    // Rates cover four scrapes, so Grafana must know the scrape interval.
    let config = fs::read_to_string(repository("dashboards/prometheus.yml")).unwrap();
    let interval = format!("scrape_interval: {}\n", source.json_data["timeInterval"]);
    assert!(config.contains(&interval));
    let providers: Providers = read("dashboards/provisioning/dashboards/ddk.yml");
    let provider = &providers.providers[0];
    assert_eq!((providers.api_version, providers.providers.len()), (1, 1));
    assert_eq!(
        (
            provider.name.as_str(),
            provider.folder.as_str(),
            provider.r#type.as_str()
        ),
        ("ddk", "", "file")
    );
    assert!(!provider.allow_ui_updates);
    let compose = fs::read_to_string(repository("dashboards/compose.yml")).unwrap();
    let mount = format!("./ddk.json:{}/ddk.json:ro", provider.options["path"]);
    assert!(compose.contains(&mount), "{mount}");
}
