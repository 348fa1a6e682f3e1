//! A chart as data: panels of bars, lines or areas. [`crate::svg()`] draws it.

use indexmap::IndexSet;

/// A chart.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chart {
    /// Its id in a page and the name of its file: letters, digits, `-` and `_`.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub about: String,
    /// Label of the horizontal axis; empty for bars.
    pub x_label: String,
    /// Label of the vertical axis.
    pub y_label: String,
    /// Whether all panels have the same vertical scale.
    pub same_scale: bool,
    /// Whether the vertical scale is logarithmic.
    pub log_scale: bool,
    /// Panels, side by side. A name has the same color in all panels.
    pub panels: Vec<Panel>,
}

/// A part of a chart with its own axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Title above it; empty if there is only one panel.
    pub title: String,
    /// Bars, lines or areas.
    pub content: Content,
    /// A dashed line across the panel.
    pub level: Option<Level>,
}

/// What a panel shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Bars from 0, side by side.
    Bars(Vec<Bar>),
    /// Lines.
    Lines(Vec<Line>),
    /// Stacked areas. Each holds its value until the next point. All have the same x values.
    Areas(Vec<Line>),
}

/// A bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Name in the legend.
    pub name: String,
    /// Height.
    pub value: f64,
    /// Half the length of the whisker.
    pub error: Option<f64>,
}

/// A line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// x and y, in the order of x.
    pub points: Vec<(f64, f64)>,
}

/// A value to compare with.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Name in the legend.
    pub name: String,
    /// Height.
    pub value: f64,
}

/// Colors (`0xRRGGBB`) that are readable on light and dark backgrounds, and that most eyes can tell apart.
pub const PALETTE: [u32; 12] = [
    0x3f7fd9, 0xe0813a, 0x2fa37a, 0xc9557f, 0x8d6fd0, 0xb39a24, 0x2fa3b8, 0xd25f55, 0x7f8b99,
    0x6fa84a, 0x8f5f3f, 0xc25fc9,
];

impl Chart {
    /// Names of bars and lines, each once, in the order of their first appearance.
    pub fn names(&self) -> IndexSet<&str> {
        let series = self.panels.iter().flat_map(|panel| panel.content.series());
        series.map(|(name, _)| name).collect()
    }

    /// The color of a name: `0xRRGGBB`.
    pub fn color(&self, name: &str) -> u32 {
        let index = self.names().get_index_of(name);
        PALETTE[index.unwrap_or(0) % PALETTE.len()]
    }

    /// The vertical range of a panel: from 0 for bars and areas, the range of the values with a margin for lines.
    pub fn y_range(&self, panel: &Panel) -> (f64, f64) {
        let shared = |other: &&Panel| self.same_scale || *other == panel;
        let ranges = self.panels.iter().filter(shared).map(Panel::y_range);
        let (low, high) = extent(ranges.flat_map(|(low, high)| [low, high]));
        let margin = 0.05 * (high - low);
        if self.log_scale && low <= 0.0 {
            // There is no value yet, and a logarithmic axis cannot start at 0.
            (1.0, 10.0)
        } else if self.log_scale {
            (0.9 * low, 1.1 * high)
        } else if matches!(panel.content, Content::Lines(_)) {
            (low - margin, high + margin)
        } else {
            (low, high)
        }
    }
}

impl Panel {
    fn y_range(&self) -> (f64, f64) {
        let level = self.level.iter().map(|level| level.value);
        match &self.content {
            Content::Bars(bars) => {
                let tops = bars.iter().map(|bar| bar.value + bar.error.unwrap_or(0.0));
                (0.0, 1.05 * tops.chain(level).fold(0.0, f64::max))
            }
            Content::Areas(_) => (0.0, 1.0),
            Content::Lines(_) => extent(self.content.points().map(|point| point.1).chain(level)),
        }
    }

    /// The horizontal range. Bars are one apart.
    pub fn x_range(&self) -> (f64, f64) {
        match &self.content {
            Content::Bars(bars) => (0.0, bars.len().max(1) as f64),
            content => extent(content.points().map(|point| point.0)),
        }
    }
}

/// The range of the finite values, widened if it would be empty.
fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = values.filter(|value| value.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if high - low > 1e-9 * high.abs() {
        (low, high)
    } else if low.is_finite() && low != 0.0 {
        (low - 0.5 * low.abs(), low + 0.5 * low.abs())
    } else {
        (0.0, 1.0)
    }
}

impl Content {
    /// Names and points. The point of a bar is at the middle of the bar.
    pub fn series(&self) -> Vec<(&str, Vec<(f64, f64)>)> {
        match self {
            Self::Bars(bars) => {
                let point = |bar: &Bar, x: u32| (f64::from(x) + 0.5, bar.value);
                let bars = bars.iter().zip(0..);
                bars.map(|(bar, x)| (&bar.name[..], vec![point(bar, x)]))
                    .collect()
            }
            Self::Lines(lines) | Self::Areas(lines) => {
                let series = lines
                    .iter()
                    .map(|line| (&line.name[..], line.points.clone()));
                series.collect()
            }
        }
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.series().into_iter().flat_map(|(_, points)| points)
    }
}
