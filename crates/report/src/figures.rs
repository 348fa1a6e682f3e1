//! The figures, as plotly charts.

use std::collections::BTreeSet;

use ddk_run::records::{ByDomain, MixtureLine, StepLine};
use plotly::{
    Layout, Plot, Scatter,
    common::{DashType, Line, Mode},
    layout::{Axis, Legend, Margin},
};

/// Weight of each domain over the steps, stacked.
pub(crate) fn weights(mixtures: &[MixtureLine], last_step: u64) -> String {
    let mut plot = chart("weight in the mixture");
    for domain in domains(mixtures) {
        let (mut x, mut y) = series(mixtures, &domain, |line| &line.weights);
        // A mixture holds until the next one, or the run's end.
        if let Some(&last) = y.last() {
            x.push(last_step);
            y.push(last);
        }
        let line = Line::new().width(1.0).shape(plotly::common::LineShape::Hv);
        plot.add_trace(
            Scatter::new(x, y)
                .name(domain)
                .mode(Mode::Lines)
                .stack_group("weights")
                .line(line),
        );
    }
    plot.to_inline_html(Some("weights"))
}

/// Student's over teacher's perplexity over the steps; 1 is caught up.
pub(crate) fn ratios(mixtures: &[MixtureLine], after: Option<(u64, &ByDomain)>) -> String {
    let mut plot = chart("student's over teacher's perplexity");
    // A line may hold an evaluation of before.
    let measured: Vec<MixtureLine> = mixtures
        .iter()
        .filter(|line| line.evaluated_at_step == line.step)
        .cloned()
        .collect();
    for domain in domains(mixtures) {
        let (mut x, mut y) = series(&measured, &domain, |line| &line.ratio);
        if let Some((step, values)) = after
            && let Some(value) = values.get(&domain)
        {
            x.push(step);
            y.push(*value);
        }
        plot.add_trace(Scatter::new(x, y).name(domain).mode(Mode::LinesMarkers));
    }
    let end = after.map_or(1, |(step, _)| step);
    let caught_up = Line::new().dash(DashType::Dash).color("gray").width(1.0);
    plot.add_trace(
        Scatter::new(vec![0, end], vec![1.0, 1.0])
            .name("caught up")
            .mode(Mode::Lines)
            .line(caught_up),
    );
    plot.to_inline_html(Some("ratios"))
}

/// Loss by term over the steps; at most 2,000 points.
pub(crate) fn losses(steps: &[StepLine]) -> String {
    let mut plot = chart("nats a prediction");
    let every = steps.len().div_ceil(2000).max(1);
    type Term = (&'static str, fn(&StepLine) -> f64);
    let terms: [Term; 3] = [
        ("loss", |line| line.loss),
        ("cross-entropy", |line| line.ce),
        ("KL", |line| line.kl),
    ];
    for (name, value) in terms {
        let (x, y): (Vec<u64>, Vec<f64>) = steps
            .iter()
            .step_by(every)
            .map(|line| (line.step, value(line)))
            .unzip();
        plot.add_trace(Scatter::new(x, y).name(name).mode(Mode::Lines));
    }
    plot.to_inline_html(Some("losses"))
}

fn chart(y: &str) -> Plot {
    let grid = "rgba(128,128,128,0.25)";
    let axis = |title: &str| {
        Axis::new()
            .title(title.to_owned())
            .grid_color(grid)
            .zero_line_color(grid)
    };
    let mut plot = Plot::new();
    // Colours that can be read on a light and on a dark page.
    plot.set_layout(
        Layout::new()
            .auto_size(true)
            .height(380)
            .margin(Margin::new().top(10).right(10).left(60).bottom(45))
            .paper_background_color("rgba(0,0,0,0)")
            .plot_background_color("rgba(0,0,0,0)")
            .font(plotly::common::Font::new().color("gray"))
            .legend(
                Legend::new()
                    .orientation(plotly::common::Orientation::Horizontal)
                    .y(1.15),
            )
            .x_axis(axis("step"))
            .y_axis(axis(y)),
    );
    plot.set_configuration(
        plotly::Configuration::new()
            .responsive(true)
            .display_logo(false),
    );
    plot
}

fn domains(mixtures: &[MixtureLine]) -> BTreeSet<String> {
    mixtures
        .iter()
        .flat_map(|line| line.weights.keys().cloned())
        .collect()
}

fn series(
    mixtures: &[MixtureLine],
    domain: &str,
    of: impl Fn(&MixtureLine) -> &ByDomain,
) -> (Vec<u64>, Vec<f64>) {
    mixtures
        .iter()
        .filter_map(|line| Some((line.step, *of(line).get(domain)?)))
        .unzip()
}
