//! Draws a chart as SVG, for pages and for files.
//!
//! Grays and colors are readable on light and dark backgrounds. A page may style text and grid lines with CSS. The
//! attribute `data-panels` holds the values. From these, `dashboards/page/pointer.js` shows those under the pointer.

use std::ops::Range;

use plotters::{
    coord::{
        Shift,
        ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
        types::RangedCoordf64,
    },
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use serde_json::{Value, json};

use crate::{
    chart::{Chart, Content, Line, Panel},
    document::escape,
};

/// Width for a page or a separate file.
pub const WIDTH: u32 = 960;
/// Minimum width of a panel.
const PANEL: u32 = 300;
/// Height of a panel with its title and the labels of its axes.
const HEIGHT: u32 = 250;
const LEGEND_LINE: i32 = 20;
/// Maximum number of points in a panel that are marked.
const MARKED: usize = 120;
const INK: RGBColor = RGBColor(0x80, 0x80, 0x80);
/// plotters draws this 12 pixels high.
const FONT: u32 = 15;

/// A chart that cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the chart `{chart}`: {reason}")]
pub struct ChartError {
    chart: String,
    reason: String,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<T> = Result<T, DrawingAreaErrorKind<std::io::Error>>;

/// Draws the chart as an SVG document, `width` pixels wide.
///
/// # Errors
/// If the chart has values that cannot be drawn.
pub fn svg(chart: &Chart, width: u32) -> Result<String, ChartError> {
    let entries = legend(chart, width.max(PANEL) as i32);
    drawn(chart, width.max(PANEL), &entries)
}

/// Draws the chart without a legend, for a page that makes one from `data-panels`.
///
/// # Errors
/// If the chart has values that cannot be drawn.
pub fn svg_without_legend(chart: &Chart, width: u32) -> Result<String, ChartError> {
    drawn(chart, width.max(PANEL), &[])
}

fn drawn(chart: &Chart, width: u32, entries: &[Entry<'_>]) -> Result<String, ChartError> {
    if chart.is_empty() && !chart.empty.is_empty() {
        return Ok(empty(chart, width));
    }
    let count = chart.panels.len().max(1);
    let columns = if count == 4 { 2 } else { count.min(3) };
    let columns = columns.min((width / PANEL) as usize);
    let rows = count.div_ceil(columns);
    let height = 10 + entries.last().map_or(0, |entry| entry.4) as u32;
    let size = (width, height + HEIGHT * rows as u32);
    let mut text = String::new();
    let mut draw_all = || -> Drawn<Vec<Value>> {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        let (head, body) = root.split_vertically(height);
        draw_legend(&head, entries)?;
        let areas = body.split_evenly((rows, columns));
        let panels = areas.iter().zip(&chart.panels);
        let frames = panels.map(|(area, panel)| draw(area, chart, panel));
        let frames = frames.collect();
        root.present()?;
        frames
    };
    let frames = draw_all().map_err(|error| ChartError {
        chart: chart.name.clone(),
        reason: error.to_string(),
    })?;
    let frames = Value::from(frames).to_string();
    let start = format!(
        "<svg role=\"img\" aria-label=\"{}. {}\" data-panels=\"{}\" ",
        escape(&chart.title),
        escape(&chart.about),
        escape(&frames)
    );
    Ok(text.replacen("<svg ", &start, 1))
}

/// A chart without points: a sentence in its middle.
fn empty(chart: &Chart, width: u32) -> String {
    let (middle, height) = (width / 2, HEIGHT / 2);
    format!(
        "<svg role=\"img\" aria-label=\"{title}. {text}\" data-panels=\"[]\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <text x=\"{middle}\" y=\"{y}\" text-anchor=\"middle\" font-family=\"sans-serif\" font-size=\"12\" \
         fill=\"#808080\">{text}</text>\n</svg>\n",
        title = escape(&chart.title),
        text = escape(&chart.empty),
        y = height / 2,
    )
}

/// A legend entry: name, color, line thickness, and position (x, y).
type Entry<'a> = (&'a str, RGBColor, u32, i32, i32);

/// Lays out the legend in as many lines as it needs.
fn legend(chart: &Chart, width: i32) -> Vec<Entry<'_>> {
    let level = chart.panels.iter().find_map(|panel| panel.level.as_ref());
    let names = chart.names().into_iter();
    let names = names.map(|name| (name, color(chart, name), 8));
    let level = level.map(|level| (level.name.as_str(), INK, 1));
    let (mut right, mut y) = (60, LEGEND_LINE);
    let mut entries = Vec::new();
    for (name, color, thickness) in names.chain(level) {
        let needed = 36 + 8 * name.chars().count() as i32;
        if right + needed > width {
            (right, y) = (60, y + LEGEND_LINE);
        }
        entries.push((name, color, thickness, right, y));
        right += needed;
    }
    // A single line needs no legend, because the title names it.
    if entries.len() == 1 {
        entries.clear();
    }
    entries
}

fn draw_legend(area: &Area<'_>, entries: &[Entry<'_>]) -> Drawn<()> {
    for &(name, color, thickness, x, y) in entries {
        let line = [(x, y - 5), (x + 16, y - 5)];
        area.draw(&PathElement::new(line, color.stroke_width(thickness)))?;
        let style = text().pos(Pos::new(HPos::Left, VPos::Bottom));
        area.draw(&Text::new(name, (x + 21, y), style))?;
    }
    Ok(())
}

fn text() -> TextStyle<'static> {
    ("sans-serif", FONT)
        .with_color(INK)
        .into_text_style(&(WIDTH, HEIGHT))
}

fn color(chart: &Chart, name: &str) -> RGBColor {
    let [_, red, green, blue] = chart.color(name).to_be_bytes();
    RGBColor(red, green, blue)
}

/// A vertical axis with its marks.
struct Axis {
    scale: RangedCoordf64,
    marks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.scale.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.scale.range()
    }
}

/// Draws a panel. Returns what `pointer.js` needs: the pixels of its frame and the values of its lines.
fn draw(area: &Area<'_>, chart: &Chart, panel: &Panel) -> Drawn<Value> {
    let is_log = chart.log_scale;
    let scaled = |y: f64| if is_log { y.ln() } else { y };
    let (low, high) = chart.y_range(panel);
    let marks = if is_log {
        decades(low, high)
    } else {
        RangedCoordf64::from(low..high).key_points(6)
    };
    let scale = RangedCoordf64::from(scaled(low)..scaled(high));
    let y = Axis { scale, marks };
    let (from, to) = panel.x_range();
    let mut builder = ChartBuilder::on(area);
    builder
        .margin_right(20)
        .x_label_area_size(38)
        .y_label_area_size(60);
    if panel.title.is_empty() {
        builder.margin_top(6);
    } else {
        builder.caption(&panel.title, text());
    }
    let mut plot = builder.build_cartesian_2d(from..to, y)?;
    let mark = |value: &f64| tick(if is_log { value.exp() } else { *value });
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
        .y_label_formatter(&mark)
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
            let finite = |points: &[(f64, f64)]| {
                let points = points.iter().map(|point| (point.0, scaled(point.1)));
                points
                    .filter(|point| point.1.is_finite())
                    .collect::<Vec<_>>()
            };
            let all: usize = lines.iter().map(|line| line.points.len()).sum();
            for line in lines.iter().filter(|line| !line.raw.is_empty()) {
                let color = color(chart, &line.name).mix(0.3);
                plot.draw_series(LineSeries::new(finite(&line.raw), color.stroke_width(1)))?;
            }
            for line in lines {
                let points = || finite(&line.points).into_iter();
                let color = color(chart, &line.name);
                plot.draw_series(LineSeries::new(points(), color.stroke_width(2)))?;
                // Mark each of few points, because a single point is no line.
                let is_marked = line.points.len() == 1 || all <= MARKED;
                let markers = points().filter(|_| is_marked);
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
    let (across, down) = plot.plotting_area().get_pixel_range();
    if let Some(level) = &panel.level {
        // The dashes of plotters need a function of glibc 2.35, and nothing else in ddk needs more than 2.34.
        let ends = [from, to].map(|x| plot.backend_coord(&(x, scaled(level.value))));
        let [(left, y), (right, _)] = ends.map(|(x, y)| (x - across.start, y - down.start));
        let pixels = plot.plotting_area().strip_coord_spec();
        for start in (left..right).step_by(7) {
            let dash = [(start, y), (right.min(start + 4), y)];
            pixels.draw(&PathElement::new(dash, INK.stroke_width(1)))?;
        }
    }
    let (x, lines) = values(chart, panel);
    Ok(json!({
        "left": across.start, "right": across.end, "top": down.start, "bottom": down.end,
        "from": from, "to": to, "of": chart.x_label, "x": x, "lines": lines,
        "level": panel.level.as_ref().map(|level| &level.name),
    }))
}

/// Marks of a logarithmic axis, as logarithms: 1, 2 and 5 times each power of ten, or the powers alone if there are
/// many.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let digits: &[f64] = match high / low {
        ratio if ratio < 1e3 => &[1.0, 2.0, 5.0],
        _ => &[1.0],
    };
    let marks = powers.flat_map(|power| digits.iter().map(move |digit| digit * 10_f64.powi(power)));
    let inside = marks.filter(|mark| (low..=high).contains(mark));
    inside.map(f64::ln).collect()
}

/// Outlines of stacked areas: to the right along the upper edge, and back along the lower edge.
fn outlines(lines: &[Line]) -> Vec<Vec<(f64, f64)>> {
    let mut below: Vec<f64> = vec![0.0; lines.first().map_or(0, |line| line.points.len())];
    let outline = |line: &Line| {
        let xs: Vec<f64> = line.points.iter().map(|point| point.0).collect();
        let own = below.iter().zip(&line.points);
        let above: Vec<f64> = own.map(|(y, point)| y + point.1).collect();
        // Each value holds until the next x.
        let steps = |ys: &[f64]| -> Vec<(f64, f64)> {
            let next = xs.iter().skip(1).chain(xs.last());
            let steps = xs.iter().zip(next).zip(ys);
            let ends = steps.flat_map(|((x, next), y)| [(*x, *y), (*next, *y)]);
            ends.collect()
        };
        let (upper, lower) = (steps(&above), steps(&below));
        below = above;
        upper.into_iter().chain(lower.into_iter().rev()).collect()
    };
    lines.iter().map(outline).collect()
}

/// The values of a panel: every x once, and for each name its value at each x, if it has one.
fn values(chart: &Chart, panel: &Panel) -> (Vec<f64>, Vec<Value>) {
    let series = panel.content.series();
    let points = series.iter().flat_map(|(_, points)| points);
    let mut xs: Vec<f64> = points.map(|point| point.0).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    // Readers need no more than four digits.
    let short = |value: f64| format!("{value:.3e}").parse::<f64>().ok();
    let line = |(name, points): (&str, Vec<(f64, f64)>)| {
        let mut points = points.into_iter().peekable();
        let at = |x: &f64| {
            let here = std::iter::from_fn(|| points.next_if(|point| point.0 <= *x));
            short(here.last()?.1).filter(|value| value.is_finite())
        };
        let y: Vec<Option<f64>> = xs.iter().map(at).collect();
        json!({ "name": name, "color": format!("#{:06x}", chart.color(name)), "y": y })
    };
    let lines = series.into_iter().map(line).collect();
    (xs, lines)
}

/// Formats a number for an axis.
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
            raw: Vec::new(),
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
