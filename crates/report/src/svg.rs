//! Draws a chart as SVG, for pages and for files.
//!
//! Grays and colors can be read on light and on dark; a page may style texts and grid lines with CSS. The attribute
//! `data-panels` holds the values, from which `dashboards/page/pointer.js` shows those under the pointer.

use std::ops::Range;

use plotters::{
    coord::{
        Shift,
        ranged1d::{AsRangedCoord, Ranged, ValueFormatter},
    },
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use serde::Serialize;

use crate::{
    chart::{Chart, Content, Line, Panel},
    document::escape,
};

/// Width for a page or a file of its own.
pub const WIDTH: u32 = 960;
/// Minimum width of a panel.
const PANEL: u32 = 300;
/// Height of a panel with its title and the labels of its axes.
const HEIGHT: u32 = 250;
const LEGEND_LINE: i32 = 20;
const INK: RGBColor = RGBColor(0x80, 0x80, 0x80);
const FONT: u32 = 12;

/// A chart that cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the chart `{chart}`: {reason}")]
pub struct ChartError {
    chart: String,
    reason: String,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

/// What a script has to know of a panel: pixels of its frame, values of its lines.
#[derive(Serialize)]
struct Frame<'a> {
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
    from: f64,
    to: f64,
    x: Vec<f64>,
    lines: Vec<FrameLine<'a>>,
}

#[derive(Serialize)]
struct FrameLine<'a> {
    name: &'a str,
    color: String,
    /// A value for each x, if the line has one there.
    y: Vec<Option<f64>>,
}

/// The chart as an SVG document, `width` pixels wide.
///
/// # Errors
/// The chart has values that cannot be drawn.
pub fn svg(chart: &Chart, width: u32) -> Result<String, ChartError> {
    let failed = |reason: String| ChartError {
        chart: chart.name.clone(),
        reason,
    };
    let width = width.max(PANEL);
    let count = chart.panels.len().max(1);
    let columns = if count == 4 { 2 } else { count.min(3) };
    let columns = columns.min((width / PANEL) as usize);
    let rows = count.div_ceil(columns);
    let entries = legend(chart, width as i32);
    let legend = 10 + entries.last().map_or(0, |entry| entry.y) as u32;
    let size = (width, legend + HEIGHT * rows as u32);
    let mut text = String::new();
    let frames = {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        let (head, body) = root.split_vertically(legend);
        draw_legend(&head, &entries)
            .and_then(|()| {
                let areas = body.split_evenly((rows, columns));
                let panels = areas.iter().zip(&chart.panels);
                panels
                    .map(|(area, panel)| draw(area, chart, panel))
                    .collect::<Drawn<Vec<Frame<'_>>>>()
            })
            .and_then(|frames| root.present().map(|()| frames))
            .map_err(|error| failed(error.to_string()))?
    };
    let frames = serde_json::to_string(&frames).map_err(|error| failed(error.to_string()))?;
    let start = format!(
        "<svg role=\"img\" font-size=\"{FONT}\" data-panels=\"{}\" ",
        escape(&frames)
    );
    let title = format!("><title>{}</title>", escape(&chart.title));
    let text = text.replacen("<svg ", &start, 1);
    Ok(text.replacen('>', &title, 1))
}

/// A name with its color and place in the legend.
struct Entry<'a> {
    name: &'a str,
    color: RGBColor,
    thickness: u32,
    x: i32,
    y: i32,
}

/// The legend in as many lines as it needs.
fn legend(chart: &Chart, width: i32) -> Vec<Entry<'_>> {
    let level = chart.panels.iter().find_map(|panel| panel.level.as_ref());
    let names = chart.names().into_iter();
    let names = names.map(|name| (name, color(chart, name), 8));
    let level = level.map(|level| (level.name.as_str(), INK, 1));
    let (mut right, mut y) = (60, LEGEND_LINE);
    let mut entries = Vec::new();
    for (name, color, thickness) in names.chain(level) {
        let needed = 34 + 7 * name.chars().count() as i32;
        if right + needed > width {
            (right, y) = (60, y + LEGEND_LINE);
        }
        let x = right;
        right += needed;
        entries.push(Entry {
            name,
            color,
            thickness,
            x,
            y,
        });
    }
    // The title says what a single line is.
    if entries.len() > 1 {
        entries
    } else {
        Vec::new()
    }
}

fn draw_legend(area: &Area<'_>, entries: &[Entry<'_>]) -> Drawn<()> {
    for entry in entries {
        let (x, y) = (entry.x, entry.y - 5);
        let style = entry.color.stroke_width(entry.thickness);
        area.draw(&PathElement::new([(x, y), (x + 16, y)], style))?;
        let anchor = text().pos(Pos::new(HPos::Left, VPos::Bottom));
        area.draw(&Text::new(entry.name, (x + 21, entry.y), anchor))?;
    }
    Ok(())
}

fn text() -> TextStyle<'static> {
    ("sans-serif", FONT)
        .with_color(INK)
        .into_text_style(&(WIDTH, HEIGHT))
}

fn color(chart: &Chart, name: &str) -> RGBColor {
    let (red, green, blue) = chart.color(name);
    RGBColor(red, green, blue)
}

fn draw<'a>(area: &Area<'_>, chart: &'a Chart, panel: &'a Panel) -> Drawn<Frame<'a>> {
    let (low, high) = chart.y_range(panel);
    if chart.log_scale {
        draw_on(area, chart, panel, (low..high).log_scale())
    } else {
        draw_on(area, chart, panel, low..high)
    }
}

/// Draws a panel on a vertical axis of either scale.
fn draw_on<'a, Y>(area: &Area<'_>, chart: &'a Chart, panel: &'a Panel, y: Y) -> Drawn<Frame<'a>>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let (from, to) = panel.x_range();
    let mut builder = ChartBuilder::on(area);
    builder
        .margin_right(12)
        .x_label_area_size(38)
        .y_label_area_size(60);
    if panel.title.is_empty() {
        builder.margin_top(6);
    } else {
        builder.caption(&panel.title, text());
    }
    let mut plot = builder.build_cartesian_2d(from..to, y)?;
    let mut mesh = plot.configure_mesh();
    mesh.disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.25))
        .axis_style(INK.mix(0.5))
        .label_style(text())
        .axis_desc_style(text())
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|value| tick(*value))
        .y_label_formatter(&|value| tick(*value))
        .x_desc(&chart.x_label)
        .y_desc(&chart.y_label);
    if matches!(panel.content, Content::Bars(_)) {
        mesh.disable_x_axis();
    }
    mesh.draw()?;
    match &panel.content {
        Content::Bars(bars) => {
            for (bar, x) in bars.iter().zip(0..) {
                let x = f64::from(x);
                let corners = [(x + 0.1, 0.0), (x + 0.9, bar.value)];
                plot.draw_series([Rectangle::new(corners, color(chart, &bar.name).filled())])?;
                if let Some(error) = bar.error {
                    let ends = [(x + 0.5, bar.value - error), (x + 0.5, bar.value + error)];
                    plot.draw_series([PathElement::new(ends, INK.stroke_width(2))])?;
                }
            }
        }
        Content::Lines(lines) => {
            for line in lines {
                let points = || {
                    line.points
                        .iter()
                        .copied()
                        .filter(|point| point.1.is_finite())
                };
                let color = color(chart, &line.name);
                plot.draw_series(LineSeries::new(points(), color.stroke_width(2)))?;
                // Markers on few points, so that a single one can be seen.
                let markers = points().filter(|_| line.points.len() <= 40);
                plot.draw_series(markers.map(|point| Circle::new(point, 2, color.filled())))?;
            }
        }
        Content::Areas(lines) => {
            for (line, outline) in lines.iter().zip(outlines(lines)) {
                let fill = color(chart, &line.name).mix(0.75);
                plot.draw_series([Polygon::new(outline, fill)])?;
            }
        }
    }
    if let Some(level) = &panel.level {
        let ends = [(from, level.value), (to, level.value)];
        plot.draw_series(DashedLineSeries::new(ends, 4, 3, INK.stroke_width(1)))?;
    }
    let (across, down): (Range<i32>, Range<i32>) = plot.plotting_area().get_pixel_range();
    let (x, lines) = values(chart, panel);
    Ok(Frame {
        left: across.start,
        right: across.end,
        top: down.start,
        bottom: down.end,
        from,
        to,
        x,
        lines,
    })
}

/// The areas between stacked lines: to the right along the upper edge, back along the lower one.
fn outlines(lines: &[Line]) -> Vec<Vec<(f64, f64)>> {
    let mut below: Vec<f64> = vec![0.0; lines.first().map_or(0, |line| line.points.len())];
    let outline = |line: &Line| {
        let xs: Vec<f64> = line.points.iter().map(|point| point.0).collect();
        let above: Vec<f64> = below
            .iter()
            .zip(&line.points)
            .map(|(y, point)| y + point.1)
            .collect();
        // Each value holds until the next x.
        let steps = |ys: &[f64]| -> Vec<(f64, f64)> {
            let next = xs.iter().skip(1).chain(xs.last());
            let pairs = xs.iter().zip(next).zip(ys);
            pairs
                .flat_map(|((x, next), y)| [(*x, *y), (*next, *y)])
                .collect()
        };
        let (upper, lower) = (steps(&above), steps(&below));
        below = above;
        upper.into_iter().chain(lower.into_iter().rev()).collect()
    };
    lines.iter().map(outline).collect()
}

/// The values of a panel: every x once, and the values there by name.
fn values<'a>(chart: &Chart, panel: &'a Panel) -> (Vec<f64>, Vec<FrameLine<'a>>) {
    let series = panel.content.series();
    let mut xs: Vec<f64> = series
        .iter()
        .flat_map(|(_, points)| points)
        .map(|point| point.0)
        .collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    // Four digits are as many as anybody reads.
    let short = |value: f64| {
        format!("{value:.3e}")
            .parse()
            .ok()
            .filter(|value: &f64| value.is_finite())
    };
    let lines = series.into_iter().map(|(name, points)| {
        let (red, green, blue) = chart.color(name);
        let mut points = points.into_iter().peekable();
        let at = |x: &f64| {
            points
                .next_if(|point| point.0 <= *x)
                .and_then(|point| short(point.1))
        };
        FrameLine {
            name,
            color: format!("#{red:02x}{green:02x}{blue:02x}"),
            y: xs.iter().map(at).collect(),
        }
    });
    let lines = lines.collect();
    (xs, lines)
}

/// A number on an axis.
fn tick(value: f64) -> String {
    let plain = |value: f64| {
        let text = format!("{value:.6}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match value.abs() {
        large if large >= 1e9 => plain(value / 1e9) + "G",
        large if large >= 1e6 => plain(value / 1e6) + "M",
        large if large >= 1e4 => plain(value / 1e3) + "k",
        small if small > 0.0 && small < 1e-4 => format!("{value:.1e}"),
        _ => plain(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_an_axis_are_short() {
        let ticks = [
            0.0,
            0.0005,
            0.25,
            1.5,
            9000.0,
            20_000.0,
            2_500_000.0,
            3e-5,
            -4.0,
        ]
        .map(tick);
        assert_eq!(
            ticks,
            [
                "0", "0.0005", "0.25", "1.5", "9000", "20k", "2.5M", "3.0e-5", "-4"
            ]
        );
    }

    #[test]
    fn stacked_areas_hold_their_values_until_the_next_point() {
        let line = |values: [f64; 2]| Line {
            name: String::new(),
            points: vec![(0.0, values[0]), (4.0, values[1])],
        };
        let outlines = outlines(&[line([0.25, 0.5]), line([0.75, 0.5])]);
        let upper = [(0.0, 0.25), (4.0, 0.25), (4.0, 0.5), (4.0, 0.5)];
        let lower = [(4.0, 0.0), (4.0, 0.0), (4.0, 0.0), (0.0, 0.0)];
        assert_eq!(outlines[0], [upper, lower].concat());
        assert_eq!(
            outlines[1][..4],
            [(0.0, 1.0), (4.0, 1.0), (4.0, 1.0), (4.0, 1.0)]
        );
    }
}
