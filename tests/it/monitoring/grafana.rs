//! What a Grafana dashboard is made of, as far as ours uses it: Grafana's dashboard schema (version 39) as
//! types. What is written by these types is valid, and what reads back into them has no field that Grafana
//! would ignore.

use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dashboard {
    pub title: String,
    pub description: String,
    pub uid: String,
    pub schema_version: u32,
    pub version: u32,
    pub editable: bool,
    /// 1: the cross-hair is shared by all panels.
    pub graph_tooltip: u32,
    pub refresh: String,
    pub time: Time,
    pub tags: Vec<String>,
    pub templating: List<Variable>,
    pub annotations: List<Annotation>,
    pub panels: Vec<Panel>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Time {
    pub from: String,
    pub to: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List<T> {
    pub list: Vec<T>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Variable {
    /// The data source, by its kind.
    Datasource {
        name: String,
        label: String,
        query: String,
    },
    /// The values of a label.
    #[serde(rename_all = "camelCase")]
    Query {
        name: String,
        label: String,
        datasource: Source,
        query: VariableQuery,
        definition: String,
        /// 2: whenever the time range changes.
        refresh: u32,
        /// 1: by name.
        sort: u32,
        multi: bool,
        include_all: bool,
        all_value: String,
    },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VariableQuery {
    pub query: String,
    pub ref_id: String,
}

/// Marks on every graph.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Annotation {
    pub name: String,
    pub datasource: Source,
    pub enable: bool,
    pub icon_color: String,
    pub expr: String,
    pub title_format: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub r#type: String,
    pub uid: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Panel {
    /// A title over the panels that follow.
    #[serde(rename_all = "camelCase")]
    Row {
        id: u32,
        title: String,
        collapsed: bool,
        grid_pos: Place,
        panels: Vec<()>,
    },
    /// Curves.
    Timeseries(Box<Chart<CurveOptions, Curve>>),
    /// A number.
    Stat(Box<Chart<StatOptions, NoLook>>),
    /// Bars of states over time.
    StateTimeline(Box<Chart<StateOptions, StateLook>>),
}

/// Any panel that shows data.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Chart<Options, Look> {
    pub id: u32,
    pub title: String,
    pub description: String,
    pub datasource: Source,
    pub grid_pos: Place,
    pub field_config: FieldConfig<Look>,
    pub options: Options,
    pub targets: Vec<Target>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    pub h: u32,
    pub w: u32,
    pub x: u32,
    pub y: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldConfig<Look> {
    pub defaults: Defaults<Look>,
    pub overrides: Vec<()>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults<Look> {
    pub unit: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    pub color: Color,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<Thresholds>,
    pub custom: Look,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Color {
    pub mode: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    pub mode: String,
    pub steps: Vec<Threshold>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Threshold {
    pub color: String,
    /// From this value on; absent in the first.
    pub value: Option<f64>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Curve {
    pub line_width: u32,
    pub fill_opacity: u32,
    pub show_points: String,
    pub span_nulls: bool,
    pub stacking: Stacking,
    pub scale_distribution: Scale,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stacking {
    pub group: String,
    pub mode: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    pub r#type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<u32>,
}

/// A stat has no look of its own.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoLook {}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StateLook {
    pub line_width: u32,
    pub fill_opacity: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurveOptions {
    pub legend: Legend,
    pub tooltip: Tooltip,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Legend {
    pub calcs: Vec<String>,
    pub display_mode: String,
    pub placement: String,
    pub show_legend: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tooltip {
    pub mode: String,
    pub sort: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StatOptions {
    pub reduce_options: Reduce,
    pub color_mode: String,
    pub graph_mode: String,
    pub justify_mode: String,
    pub orientation: String,
    pub text_mode: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reduce {
    pub calcs: Vec<String>,
    pub fields: String,
    pub values: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StateOptions {
    pub align_value: String,
    pub legend: Legend,
    pub merge_values: bool,
    pub row_height: f64,
    pub show_value: String,
    pub tooltip: Tooltip,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    pub ref_id: String,
    pub datasource: Source,
    pub expr: String,
    pub legend_format: String,
    pub range: bool,
    pub instant: bool,
}

impl Panel {
    pub fn id(&self) -> u32 {
        match self {
            Self::Row { id, .. } => *id,
            Self::Timeseries(chart) => chart.id,
            Self::Stat(chart) => chart.id,
            Self::StateTimeline(chart) => chart.id,
        }
    }

    pub fn place(&self) -> Place {
        match self {
            Self::Row { grid_pos, .. } => *grid_pos,
            Self::Timeseries(chart) => chart.grid_pos,
            Self::Stat(chart) => chart.grid_pos,
            Self::StateTimeline(chart) => chart.grid_pos,
        }
    }

    /// Title, description, expressions; none of a row.
    pub fn content(&self) -> Option<(&str, &str, &[Target])> {
        fn of<O, L>(chart: &Chart<O, L>) -> (&str, &str, &[Target]) {
            (&chart.title, &chart.description, &chart.targets)
        }
        match self {
            Self::Row { .. } => None,
            Self::Timeseries(chart) => Some(of(chart)),
            Self::Stat(chart) => Some(of(chart)),
            Self::StateTimeline(chart) => Some(of(chart)),
        }
    }
}
