//! A chart as plotly figures in a page, a figure a panel.

use plotly::{
    Bar, Layout, Plot, Scatter,
    common::{
        DashType, ErrorData, ErrorType, Font, Line as Stroke, LineShape, Marker, Mode, Orientation,
        Title,
    },
    layout::{Axis, Legend, Margin},
};

use crate::{
    chart::{Chart, Content, Level, Line, Panel},
    document::escape,
};

/// The chart as HTML; the page has to hold plotly's script.
pub(crate) fn plot(chart: &Chart) -> String {
    let several = chart.panels.len() > 1;
    let panels = chart.panels.iter().enumerate().map(|(index, panel)| {
        let id = if several {
            format!("{}-{index}", chart.name)
        } else {
            chart.name.clone()
        };
        let title = match panel.title.as_str() {
            "" => String::new(),
            title => format!("<h3>{}</h3>", escape(title)),
        };
        let figure = self::panel(chart, panel).to_inline_html(Some(&id));
        format!("<div class=\"figure\">{title}{figure}</div>")
    });
    format!("<div class=\"panels\">{}</div>", panels.collect::<String>())
}

fn panel(chart: &Chart, panel: &Panel) -> Plot {
    let mut plot = Plot::new();
    plot.set_layout(layout(chart, panel));
    let stroke = |name: &str| Stroke::new().color(chart.colour(name));
    let xy = |line: &Line| -> (Vec<f64>, Vec<f64>) { line.points.iter().copied().unzip() };
    match &panel.content {
        Content::Bars(bars) => {
            for bar in bars {
                let trace = Bar::new(vec![bar.name.clone()], vec![bar.value])
                    .name(&bar.name)
                    .marker(Marker::new().color(chart.colour(&bar.name)));
                plot.add_trace(match bar.error {
                    Some(error) => {
                        trace.error_y(ErrorData::new(ErrorType::Data).array(vec![error]))
                    }
                    None => trace,
                });
            }
            if let Some(level) = &panel.level {
                let names: Vec<String> = bars.iter().map(|bar| bar.name.clone()).collect();
                let values = vec![level.value; names.len()];
                plot.add_trace(
                    Scatter::new(names, values)
                        .name(&level.name)
                        .mode(Mode::Lines)
                        .line(dashed()),
                );
            }
        }
        Content::Lines(lines) => {
            // Markers where there are few points, so that a single one can be seen.
            let few = lines.iter().all(|line| line.points.len() <= 100);
            let mode = if few { Mode::LinesMarkers } else { Mode::Lines };
            for line in lines {
                let (x, y) = xy(line);
                plot.add_trace(
                    Scatter::new(x, y)
                        .name(&line.name)
                        .mode(mode.clone())
                        .line(stroke(&line.name)),
                );
            }
            if let Some(level) = &panel.level {
                plot.add_trace(level_trace(level, lines));
            }
        }
        Content::Areas(lines) => {
            for line in lines {
                let (x, y) = xy(line);
                plot.add_trace(
                    Scatter::new(x, y)
                        .name(&line.name)
                        .mode(Mode::Lines)
                        .stack_group("areas")
                        .line(stroke(&line.name).width(1.0).shape(LineShape::Hv)),
                );
            }
        }
    }
    plot
}

fn level_trace(level: &Level, lines: &[Line]) -> Box<Scatter<f64, f64>> {
    let ends = lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|point| point.0);
    let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
        (low.min(x), high.max(x))
    });
    Scatter::new(vec![low, high], vec![level.value; 2])
        .name(&level.name)
        .mode(Mode::Lines)
        .line(dashed())
}

fn dashed() -> Stroke {
    Stroke::new().dash(DashType::Dash).color("gray").width(1.0)
}

fn layout(chart: &Chart, panel: &Panel) -> Layout {
    // Colours that can be read on a light and on a dark page.
    let grid = "rgba(128,128,128,0.25)";
    let axis = |title: &str| {
        Axis::new()
            .title(Title::with_text(title))
            .grid_color(grid)
            .zero_line_color(grid)
    };
    let mut y_axis = axis(&chart.y_label);
    if chart.same_scale {
        let (low, high) = chart.y_range(panel);
        y_axis = y_axis.range(vec![low, high]);
    }
    let bars = matches!(panel.content, Content::Bars(_));
    Layout::new()
        .auto_size(true)
        .height(if chart.panels.len() > 1 { 300 } else { 380 })
        .margin(Margin::new().top(10).right(10).left(60).bottom(45))
        .paper_background_color("rgba(0,0,0,0)")
        .plot_background_color("rgba(0,0,0,0)")
        .font(Font::new().color("gray"))
        // The bars' names are under them.
        .show_legend(!bars)
        .legend(Legend::new().orientation(Orientation::Horizontal).y(1.15))
        .x_axis(axis(&chart.x_label))
        .y_axis(y_axis)
}
