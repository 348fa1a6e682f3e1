//! A chart as an SVG file: panels in a grid under one legend. Greys and colours that can be read on light and on dark.

use std::fmt::Write;

use crate::{
    chart::{Bar, Chart, Content, Line, Panel},
    document::escape,
};

const WIDTH: f64 = 960.0;
/// Of a panel with its title and the labels of its axis.
const HEIGHT: f64 = 240.0;
/// Around the drawing of a panel.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 40.0;
const LEGEND_LINE: f64 = 20.0;
/// About the width of a letter.
const LETTER: f64 = 6.6;
const INK: &str = "#808080";

/// The chart as a file.
pub fn svg(chart: &Chart) -> String {
    let count = chart.panels.len().max(1);
    let columns = match count {
        1..=3 => count,
        4 => 2,
        _ => 3,
    };
    let (legend, top) = legend(chart);
    let height = top + HEIGHT * count.div_ceil(columns) as f64;
    let width = WIDTH / columns as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\" role=\"img\">\n\
         <title>{}</title>\n{legend}",
        escape(&chart.title)
    );
    for (index, panel) in chart.panels.iter().enumerate() {
        let (row, column) = (index / columns, index % columns);
        let frame = Frame::new(
            chart,
            panel,
            width * column as f64,
            top + HEIGHT * row as f64,
            width,
        );
        text.push_str(&frame.draw(chart, panel));
    }
    text.push_str("</svg>\n");
    text
}

/// Names with their colours, in as many lines as they need, and the height of these.
fn legend(chart: &Chart) -> (String, f64) {
    let level = chart.panels.iter().find_map(|panel| panel.level.as_ref());
    let names = chart.names().into_iter();
    let entries = names.map(|name| (name, chart.colour(name), false));
    let entries = entries.chain(level.map(|level| (level.name.as_str(), INK, true)));
    let (mut text, mut x, mut y) = (String::new(), LEFT, LEGEND_LINE);
    for (name, colour, dashed) in entries {
        let needed = 34.0 + LETTER * name.chars().count() as f64;
        if x + needed > WIDTH && x > LEFT {
            (x, y) = (LEFT, y + LEGEND_LINE);
        }
        let dash = if dashed {
            " stroke-dasharray=\"4 3\""
        } else {
            ""
        };
        let (width, middle) = (if dashed { 1.5 } else { 8.0 }, y - 4.0);
        let _ = writeln!(
            text,
            "<path d=\"M{x} {middle}h16\" stroke=\"{colour}\" stroke-width=\"{width}\"{dash}/><text x=\"{}\" \
             y=\"{y}\">{}</text>",
            x + 21.0,
            escape(name)
        );
        x += needed;
    }
    (text, y + 10.0)
}

/// Where a panel's numbers are on the paper.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    fn new(chart: &Chart, panel: &Panel, left: f64, top: f64, width: f64) -> Self {
        Self {
            left: left + LEFT,
            right: left + width - RIGHT,
            top: top + TOP,
            bottom: top + HEIGHT - BOTTOM,
            x: x_range(&panel.content),
            y: chart.y_range(panel),
        }
    }

    fn at_x(&self, x: f64) -> f64 {
        round(self.left + (self.right - self.left) * (x - self.x.0) / (self.x.1 - self.x.0))
    }

    fn at_y(&self, y: f64) -> f64 {
        round(self.bottom - (self.bottom - self.top) * (y - self.y.0) / (self.y.1 - self.y.0))
    }

    fn draw(&self, chart: &Chart, panel: &Panel) -> String {
        let mut text = String::new();
        let middle = round(f64::midpoint(self.left, self.right));
        if !panel.title.is_empty() {
            let _ = writeln!(
                text,
                "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" font-weight=\"bold\">{}</text>",
                self.top - 9.0,
                escape(&panel.title)
            );
        }
        self.axes(chart, panel, middle, &mut text);
        match &panel.content {
            Content::Bars(bars) => self.bars(chart, bars, &mut text),
            Content::Lines(lines) => self.lines(chart, lines, &mut text),
            Content::Areas(lines) => self.areas(chart, lines, &mut text),
        }
        if let Some(level) = &panel.level {
            let y = self.at_y(level.value);
            let _ = writeln!(
                text,
                "<path d=\"M{} {y}H{}\" stroke=\"{INK}\" stroke-width=\"1.5\" \
                 stroke-dasharray=\"4 3\"><title>{}: {}</title></path>",
                self.left,
                self.right,
                escape(&level.name),
                level.value
            );
        }
        text
    }

    fn axes(&self, chart: &Chart, panel: &Panel, middle: f64, text: &mut String) {
        for (value, label) in ticks(self.y) {
            let y = self.at_y(value);
            let _ = writeln!(
                text,
                "<path d=\"M{} {y}H{}\" stroke=\"{INK}\" stroke-opacity=\"0.25\"/><text x=\"{}\" y=\"{}\" \
                 text-anchor=\"end\">{label}</text>",
                self.left,
                self.right,
                self.left - 5.0,
                y + 4.0
            );
        }
        if !matches!(panel.content, Content::Bars(_)) {
            for (value, label) in ticks(self.x) {
                let _ = writeln!(
                    text,
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
                    self.at_x(value),
                    self.bottom + 15.0
                );
            }
        }
        let _ = writeln!(
            text,
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            self.bottom + 31.0,
            escape(&chart.x_label)
        );
        let (x, y) = (
            self.left - 46.0,
            round(f64::midpoint(self.top, self.bottom)),
        );
        let _ = writeln!(
            text,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\" transform=\"rotate(-90 {x} {y})\">{}</text>",
            escape(&chart.y_label)
        );
    }

    fn bars(&self, chart: &Chart, bars: &[Bar], text: &mut String) {
        let slot = (self.right - self.left) / bars.len().max(1) as f64;
        for (index, bar) in bars.iter().enumerate() {
            let (x, y) = (
                self.left + slot * (index as f64 + 0.1),
                self.at_y(bar.value),
            );
            let _ = writeln!(
                text,
                "<rect x=\"{}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"{}\"><title>{}: {}</title></rect>",
                round(x),
                round(0.8 * slot),
                round(self.bottom - y),
                chart.colour(&bar.name),
                escape(&bar.name),
                bar.value
            );
            if let Some(error) = bar.error {
                let (high, low) = (self.at_y(bar.value + error), self.at_y(bar.value - error));
                let _ = writeln!(
                    text,
                    "<path d=\"M{} {high}V{low}\" stroke=\"{INK}\" stroke-width=\"2\"/>",
                    round(x + 0.4 * slot)
                );
            }
        }
    }

    fn lines(&self, chart: &Chart, lines: &[Line], text: &mut String) {
        for line in lines {
            let points: Vec<(f64, f64)> = line
                .points
                .iter()
                .filter(|point| point.1.is_finite())
                .map(|point| (self.at_x(point.0), self.at_y(point.1)))
                .collect();
            let colour = chart.colour(&line.name);
            let path: Vec<String> = points.iter().map(|(x, y)| format!("{x} {y}")).collect();
            let _ = writeln!(
                text,
                "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"><title>{}</title></path>",
                path.join("L"),
                escape(&line.name)
            );
            // Markers where there are few points, so that a single one can be seen.
            for (x, y) in points.iter().filter(|_| points.len() <= 40) {
                let _ = writeln!(
                    text,
                    "<circle cx=\"{x}\" cy=\"{y}\" r=\"2.4\" fill=\"{colour}\"/>"
                );
            }
        }
    }

    fn areas(&self, chart: &Chart, lines: &[Line], text: &mut String) {
        let mut below = vec![0.0; lines.first().map_or(0, |line| line.points.len())];
        for line in lines {
            let xs: Vec<f64> = line.points.iter().map(|point| self.at_x(point.0)).collect();
            let above: Vec<f64> = below
                .iter()
                .zip(&line.points)
                .map(|(below, point)| below + point.1)
                .collect();
            // To the right along the upper edge, back along the lower one; each value holds until the next x.
            let mut path = String::new();
            for (index, value) in above.iter().enumerate() {
                let _ = write!(
                    path,
                    "{}{} {}",
                    if index == 0 { "M" } else { "L" },
                    xs[index],
                    self.at_y(*value)
                );
                let _ = write!(path, "H{}", xs.get(index + 1).unwrap_or(&xs[index]));
            }
            for (index, value) in below.iter().enumerate().take(above.len()).rev() {
                let _ = write!(
                    path,
                    "H{}V{}",
                    xs.get(index + 1).unwrap_or(&xs[index]),
                    self.at_y(*value)
                );
            }
            if let Some(first) = xs.first() {
                let _ = write!(path, "H{first}Z");
            }
            let _ = writeln!(
                text,
                "<path d=\"{path}\" fill=\"{}\" fill-opacity=\"0.75\"><title>{}</title></path>",
                chart.colour(&line.name),
                escape(&line.name)
            );
            below = above;
        }
    }
}

fn x_range(content: &Content) -> (f64, f64) {
    let (Content::Lines(lines) | Content::Areas(lines)) = content else {
        return (0.0, 1.0);
    };
    let xs = lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|point| point.0);
    let (low, high) = xs.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
        (low.min(x), high.max(x))
    });
    if low < high { (low, high) } else { (0.0, 1.0) }
}

/// Round numbers within a range, with their labels: steps of 1, 2 or 5 times a power of ten, about five of them.
fn ticks((low, high): (f64, f64)) -> Vec<(f64, String)> {
    let rough = (high - low) / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    let label = |value: f64| {
        let (scaled, suffix, step) = match value.abs().max(high.abs()) {
            large if large >= 1e9 => (value / 1e9, "G", step / 1e9),
            large if large >= 1e6 => (value / 1e6, "M", step / 1e6),
            large if large >= 1e4 => (value / 1e3, "k", step / 1e3),
            _ => (value, "", step),
        };
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        if scaled == 0.0 {
            "0".to_owned()
        } else {
            format!("{scaled:.decimals$}{suffix}")
        }
    };
    (first..=last)
        .map(|index| index as f64 * step)
        .map(|value| (value, label(value)))
        .collect()
}

fn round(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_within_the_range() {
        let labels =
            |range| -> Vec<String> { ticks(range).into_iter().map(|tick| tick.1).collect() };
        assert_eq!(labels((0.0, 1.0)), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(
            labels((0.97, 1.21)),
            ["1.00", "1.05", "1.10", "1.15", "1.20"]
        );
        assert_eq!(
            labels((0.0, 982_883.0)),
            ["0", "200k", "400k", "600k", "800k"]
        );
    }
}
