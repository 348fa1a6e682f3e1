//! A text with tables and figures, written as Markdown or as one self-contained page.

use plotly::Plot;

use crate::{chart::Chart, plot::plot};

/// A part of a text. Where text is marked, it is with `**` (strong) and `` ` `` (code), as Markdown has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A title of the level.
    Title(u8, String),
    /// A paragraph.
    Text(String),
    /// Rows under a header; the first column is left-aligned, the others right-aligned.
    Table(Table),
    /// A figure.
    Figure(Chart),
    /// A file's name and its text, folded away in a page.
    Code(String, String),
}

/// A table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// Names of the columns.
    pub header: Vec<String>,
    /// As long as the header.
    pub rows: Vec<Vec<String>>,
}

/// As Markdown; figures are files `figures/NAME.svg` beside it.
pub fn markdown(blocks: &[Block]) -> String {
    let blocks = blocks.iter().map(|block| match block {
        Block::Title(level, text) => format!("{} {text}\n", "#".repeat(usize::from(*level))),
        Block::Text(text) => format!("{text}\n"),
        Block::Table(table) => table.markdown(),
        Block::Figure(chart) => format!(
            "![{title}](figures/{name}.svg)\n\n*{title}.* {about}\n",
            title = chart.title,
            name = chart.name,
            about = chart.about
        ),
        Block::Code(name, text) => format!("`{name}`:\n\n```\n{}\n```\n", text.trim_end()),
    });
    blocks.collect::<Vec<_>>().join("\n")
}

/// As a page that works without a network.
pub fn page(title: &str, blocks: &[Block]) -> String {
    let body: String = blocks
        .iter()
        .map(|block| match block {
            Block::Title(level, text) => format!("<h{level}>{}</h{level}>\n", inline(text)),
            Block::Text(text) => format!("<p>{}</p>\n", inline(text)),
            Block::Table(table) => table.html(),
            Block::Figure(chart) => format!(
                "<section><h3>{}</h3><p>{}</p>{}</section>\n",
                inline(&chart.title),
                inline(&chart.about),
                plot(chart)
            ),
            Block::Code(name, text) => format!(
                "<details><summary>{}</summary><pre>{}</pre></details>\n",
                escape(name),
                escape(text)
            ),
        })
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{} - DDK</title>\n\
         <style>{STYLE}</style>\n{}\n</head>\n<body>\n{body}</body>\n</html>\n",
        escape(title),
        Plot::offline_js_sources()
    )
}

const STYLE: &str = "\
:root { color-scheme: light dark; } \
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; } \
h1, h2, h3 { font-weight: 600; } pre { overflow-x: auto; font-size: 13px; line-height: 1.4; } \
.figure { min-height: 300px; min-width: 0; } .figure h3 { font-size: 14px; margin: 0; text-align: center; } \
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 1rem; } \
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; } \
th, td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid rgba(128, 128, 128, 0.3); \
white-space: nowrap; } th:first-child, td:first-child { text-align: left; }";

impl Table {
    fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule: Vec<&str> = (0..self.header.len())
            .map(|index| if index == 0 { "---" } else { "---:" })
            .collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}|{}|\n{rows}", line(&self.header), rule.join("|"))
    }

    fn html(&self) -> String {
        let row = |cells: &[String], tag: &str| {
            let cells: String = cells
                .iter()
                .map(|cell| format!("<{tag}>{}</{tag}>", inline(cell)))
                .collect();
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = self.rows.iter().map(|cells| row(cells, "td")).collect();
        format!(
            "<div class=\"table\"><table>\n<thead>{}</thead>\n<tbody>{rows}</tbody>\n</table></div>\n",
            row(&self.header, "th")
        )
    }
}

/// Text as HTML shows it.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Marked text as HTML.
fn inline(text: &str) -> String {
    let mut html = escape(text);
    for (mark, tag) in [("**", "strong"), ("`", "code")] {
        let mut parts = html.split(mark);
        let mut marked = parts.next().unwrap_or_default().to_owned();
        for (index, part) in parts.enumerate() {
            let slash = if index % 2 == 0 { "" } else { "/" };
            marked.push_str(&format!("<{slash}{tag}>{part}"));
        }
        html = marked;
    }
    html
}
