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
    /// What to write in place of the axes while there are no points; empty: draw the axes.
    pub empty: String,
    /// Whether its lines are noisy, so that smoothing them helps.
    pub is_noisy: bool,
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
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// x and y, in the order of x.
    pub points: Vec<(f64, f64)>,
    /// The values before smoothing, drawn faintly; empty if the line is not smoothed.
    pub raw: Vec<(f64, f64)>,
}

/// A value to compare with.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Name in the legend.
    pub name: String,
    /// Height.
    pub value: f64,
}

/// Colors (`0xRRGGBB`) that are readable on light and dark backgrounds. Each is the one farthest from those before it,
/// for eyes with normal color vision, without red cones, and without green cones.
pub const PALETTE: [u32; 24] = [
    0x3f7fd9, 0xe0813a, 0x14bcaa, 0xb01a4a, 0x863e86, 0xaaa474, 0x44b0da, 0x7a5614, 0x4a7a6e,
    0x7a86a4, 0xd45644, 0x5c50aa, 0xf27a98, 0x147aaa, 0x32aaf8, 0x2c9850, 0x62566e, 0x449874,
    0x86b65c, 0x7a8c14, 0xe07ace, 0x14684a, 0x627432, 0xb0568c,
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

    /// Whether it has no points to draw.
    pub fn is_empty(&self) -> bool {
        let mut points = self.panels.iter().flat_map(|panel| panel.content.points());
        !points.any(|(_, y)| y.is_finite())
    }

    /// Whether its values are positive, and the largest is more than ten times the smallest, so that a logarithmic
    /// scale shows more of them.
    pub fn spans_a_decade(&self) -> bool {
        let points = self.panels.iter().flat_map(|panel| panel.content.points());
        let (low, high) = points.fold((f64::INFINITY, 0.0_f64), |(low, high), (_, y)| {
            (low.min(y), high.max(y))
        });
        low > 0.0 && high > 10.0 * low
    }

    /// Smooths its lines if they are noisy. Each value becomes a mean of itself and the earlier ones, whose weights
    /// fall by `factor` from point to point. The first values weigh less than with a plain exponential mean (bias
    /// correction as in Adam). A factor outside of 0 to 1 changes nothing.
    pub fn smooth(&mut self, factor: f64) {
        if !(self.is_noisy && factor > 0.0 && factor < 1.0) {
            return;
        }
        for panel in &mut self.panels {
            if let Content::Lines(lines) = &mut panel.content {
                lines.iter_mut().for_each(|line| line.smooth(factor));
            }
        }
    }

    /// The vertical range of a panel: from 0 for bars and areas, the range of the values with a margin for lines.
    pub fn y_range(&self, panel: &Panel) -> (f64, f64) {
        // By address, because a panel with a value that is not a number does not equal itself.
        let shared = |other: &&Panel| self.same_scale || std::ptr::eq(*other, panel);
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
            Content::Lines(lines) => {
                let raw = lines.iter().flat_map(|line| &line.raw).copied();
                let points = self.content.points().chain(raw);
                extent(points.map(|point| point.1).chain(level))
            }
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

impl Line {
    fn smooth(&mut self, factor: f64) {
        let (mut sum, mut weight) = (0.0, 0.0);
        let smooth = |&(x, y): &(f64, f64)| {
            if y.is_finite() {
                (sum, weight) = (factor * sum + y, factor * weight + 1.0);
            }
            (x, sum / weight)
        };
        let smoothed = self.points.iter().map(smooth).collect();
        self.raw = std::mem::replace(&mut self.points, smoothed);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)]) -> Chart {
        let line = Line {
            points: points.to_vec(),
            ..Line::default()
        };
        Chart {
            is_noisy: true,
            panels: vec![Panel {
                title: String::new(),
                content: Content::Lines(vec![line]),
                level: None,
            }],
            ..Chart::default()
        }
    }

    fn line(chart: &Chart) -> &Line {
        match &chart.panels[0].content {
            Content::Lines(lines) => &lines[0],
            content => panic!("{content:?}"),
        }
    }

    #[test]
    fn smoothed_values_are_weighted_means_of_the_values_so_far() {
        let points = [(1.0, 8.0), (2.0, f64::NAN), (3.0, 2.0), (4.0, 4.0)];
        let mut chart = chart(&points);
        chart.smooth(0.5);
        // (8), (8), (8/2 + 2)/(3/2), (8/4 + 2/2 + 4)/(7/4); a value that is not finite counts for nothing.
        let expected = [(1.0, 8.0), (2.0, 8.0), (3.0, 4.0), (4.0, 4.0)];
        assert_eq!(line(&chart).points, expected);
        assert_eq!(line(&chart).raw[3], (4.0, 4.0));
        assert!(line(&chart).raw[1].1.is_nan());
        // The axis still covers the values before smoothing.
        let (low, high) = chart.y_range(&chart.panels[0]);
        assert!(low < 2.0 && high > 8.0, "{low} to {high}");
    }

    #[test]
    fn only_noisy_charts_and_valid_factors_smooth() {
        let points = [(1.0, 8.0), (2.0, 2.0)];
        for factor in [0.0, 1.0, -0.5, f64::NAN] {
            let mut chart = chart(&points);
            chart.smooth(factor);
            assert_eq!(line(&chart).points, points, "{factor}");
            assert!(line(&chart).raw.is_empty());
        }
        let mut calm = chart(&points);
        calm.is_noisy = false;
        calm.smooth(0.5);
        assert_eq!(line(&calm).points, points);
    }

    #[test]
    fn a_decade_needs_positive_values_that_are_far_apart() {
        assert!(chart(&[(1.0, 1.0), (2.0, 1884.0)]).spans_a_decade());
        assert!(!chart(&[(1.0, 1.0), (2.0, 9.0)]).spans_a_decade());
        assert!(!chart(&[(1.0, 0.0), (2.0, 9.0)]).spans_a_decade());
        assert!(!chart(&[]).spans_a_decade());
        assert!(chart(&[]).is_empty() && !chart(&[(1.0, 1.0)]).is_empty());
    }

    /// The color as CIE L*a*b*, seen by an eye that `cones` describes: a matrix on linear RGB.
    fn lab(color: u32, cones: [[f64; 3]; 3]) -> [f64; 3] {
        let [_, red, green, blue] = color.to_be_bytes();
        let linear = [red, green, blue].map(|value| {
            let value = f64::from(value) / 255.0;
            if value <= 0.04045 {
                value / 12.92
            } else {
                ((value + 0.055) / 1.055).powf(2.4)
            }
        });
        let times = |matrix: [[f64; 3]; 3], vector: [f64; 3]| {
            matrix.map(|row| row.iter().zip(vector).map(|(a, b)| a * b).sum::<f64>())
        };
        let seen = times(cones, linear).map(|value| value.clamp(0.0, 1.0));
        let to_xyz = [
            [0.4124, 0.3576, 0.1805],
            [0.2126, 0.7152, 0.0722],
            [0.0193, 0.1192, 0.9505],
        ];
        let [x, y, z] = times(to_xyz, seen);
        let root = |value: f64| {
            if value > 0.008856 {
                value.cbrt()
            } else {
                7.787 * value + 16.0 / 116.0
            }
        };
        let (x, y, z) = (root(x / 0.9505), root(y), root(z / 1.089));
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    /// The matrices are those of Machado, Oliveira and Fernandes (2009) for complete deficiencies. 2.3 is the
    /// difference that people just notice.
    #[test]
    fn most_eyes_can_tell_the_colors_apart() {
        let normal = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        let without_red = [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ];
        let without_green = [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.01182, 0.04294, 0.968881],
        ];
        for (cones, least) in [(normal, 17.0), (without_red, 9.0), (without_green, 9.0)] {
            let seen = PALETTE.map(|color| lab(color, cones));
            for (index, one) in seen.iter().enumerate() {
                for other in &seen[..index] {
                    let squares = one.iter().zip(other).map(|(a, b)| (a - b).powi(2));
                    let distance = squares.sum::<f64>().sqrt();
                    assert!(distance > least, "color {index}: {distance} from another");
                }
            }
        }
        // Neither white nor the dark page swallows a line.
        for color in PALETTE {
            let [lightness, ..] = lab(color, normal);
            assert!(
                (35.0..=73.0).contains(&lightness),
                "{color:06x}: {lightness}"
            );
        }
    }
}
