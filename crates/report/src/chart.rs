//! A figure as data: panels of bars or lines. [`crate::svg`] draws it into a file, `plot.rs` into a page.

/// A figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Its id in a page and its file's name: letters, digits, `-`.
    pub name: String,
    /// What is shown.
    pub title: String,
    /// How it is read.
    pub about: String,
    /// Under the horizontal axis; empty for bars.
    pub x_label: String,
    /// Beside the vertical axis.
    pub y_label: String,
    /// Whether all panels have the same vertical scale.
    pub same_scale: bool,
    /// Side by side; what has the same name has the same colour in all.
    pub panels: Vec<Panel>,
}

/// A part of a figure with axes of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Over it; empty where there is only one.
    pub title: String,
    /// Bars or lines.
    pub content: Content,
    /// A dashed line from side to side.
    pub level: Option<Level>,
}

/// What is in a panel.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Bars from 0, side by side.
    Bars(Vec<Bar>),
    /// Lines over each other.
    Lines(Vec<Line>),
    /// Areas on top of each other, each holding its value until the next point. All have the same x.
    Areas(Vec<Line>),
}

/// A bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Its name in the legend.
    pub name: String,
    /// Its height.
    pub value: f64,
    /// Half of the whisker's length.
    pub error: Option<f64>,
}

/// A line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// x and y, in the order of x.
    pub points: Vec<(f64, f64)>,
}

/// A value to compare with.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Its name in the legend.
    pub name: String,
    /// Its height.
    pub value: f64,
}

/// Colours that can be read on light and dark, and told apart by most.
const COLOURS: [&str; 10] = [
    "#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#9c755f", "#edc948",
    "#ff9da7", "#8a8a8a",
];

impl Chart {
    /// Names of bars and lines, each once, as they come.
    pub fn names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for panel in &self.panels {
            for name in panel.content.names() {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names
    }

    /// The colour of a name.
    pub fn colour(&self, name: &str) -> &'static str {
        let names = self.names();
        let index = names.iter().position(|other| *other == name).unwrap_or(0);
        COLOURS[index % COLOURS.len()]
    }

    /// The vertical range of a panel: from 0 for bars and areas, the values with a margin for lines.
    pub fn y_range(&self, panel: &Panel) -> (f64, f64) {
        let ranges = self
            .panels
            .iter()
            .filter(|other| self.same_scale || *other == panel)
            .map(Panel::y_range);
        let (low, high) = ranges.fold((f64::INFINITY, f64::NEG_INFINITY), |all, range| {
            (all.0.min(range.0), all.1.max(range.1))
        });
        if low.is_finite() && high.is_finite() {
            (low, if high > low { high } else { low + 1.0 })
        } else {
            (0.0, 1.0)
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
            Content::Lines(lines) => {
                let values = lines
                    .iter()
                    .flat_map(|line| &line.points)
                    .map(|point| point.1);
                let values: Vec<f64> = values
                    .chain(level)
                    .filter(|value| value.is_finite())
                    .collect();
                let low = values.iter().copied().fold(f64::INFINITY, f64::min);
                let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let margin = 0.05 * (high - low);
                (low - margin, high + margin)
            }
        }
    }
}

impl Content {
    fn names(&self) -> Vec<&str> {
        match self {
            Self::Bars(bars) => bars.iter().map(|bar| bar.name.as_str()).collect(),
            Self::Lines(lines) | Self::Areas(lines) => {
                lines.iter().map(|line| line.name.as_str()).collect()
            }
        }
    }
}
