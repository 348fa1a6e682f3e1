//! A text with tables and figures, written as Markdown or as one self-contained page.

use crate::{
    chart::Chart,
    svg::{ChartError, WIDTH, svg},
};

/// A part of a text. Where text is marked, it is with `**` (strong) and `` ` `` (code), as Markdown has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A title of the level.
    Title(u8, String),
    /// A paragraph.
    Text(String),
    /// Lines, one below the other.
    List(Vec<String>),
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
        Block::List(lines) => lines.iter().map(|line| format!("- {line}\n")).collect(),
        Block::Table(table) => table.markdown(),
        Block::Figure(chart) => format!(
            "![{title}](figures/{name}.svg)\n\n{caption}\n",
            title = chart.title,
            name = chart.name,
            caption = format!("*{}.* {}", chart.title, chart.about).trim_end()
        ),
        Block::Code(name, text) => format!("`{name}`:\n\n```\n{}\n```\n", text.trim_end()),
    });
    blocks.collect::<Vec<_>>().join("\n")
}

/// As a page that works without a network.
///
/// # Errors
/// A chart cannot be drawn.
pub fn page(title: &str, blocks: &[Block]) -> Result<String, ChartError> {
    let html = |block: &Block| {
        Ok(match block {
            Block::Title(level, text) => format!("<h{level}>{}</h{level}>\n", inline(text)),
            Block::Text(text) => format!("<p>{}</p>\n", inline(text)),
            Block::List(lines) => {
                let items = lines
                    .iter()
                    .map(|line| format!("<li>{}</li>", inline(line)));
                format!("<ul>{}</ul>\n", items.collect::<String>())
            }
            Block::Table(table) => table.html(),
            Block::Figure(chart) => format!(
                "<figure><figcaption><b>{}</b> {}</figcaption><div class=\"chart\">{}</div></figure>\n",
                inline(&chart.title),
                inline(&chart.about),
                svg(chart, WIDTH)?
            ),
            Block::Code(name, text) => format!(
                "<details><summary>{}</summary><pre>{}</pre></details>\n",
                escape(name),
                escape(text)
            ),
        })
    };
    let body = blocks
        .iter()
        .map(html)
        .collect::<Result<String, ChartError>>()?;
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{} - DDK</title>\n<style>{STYLE}</style>\n\
         </head>\n<body class=\"report\">\n{body}<script type=\"module\">{POINTER}</script>\n</body>\n</html>\n",
        escape(title)
    ))
}

/// The look of the live page.
const STYLE: &str = include_str!("../../../dashboards/page/page.css");
/// Shows the values of a chart under the pointer.
const POINTER: &str = include_str!("../../../dashboards/page/pointer.js");

impl Table {
    /// As text for a terminal.
    pub fn text(&self) -> String {
        let lines = || [&self.header].into_iter().chain(&self.rows);
        let width = |column: usize| {
            let cells = lines().filter_map(|cells| cells.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let line = |cells: &Vec<String>| {
            let cells = cells.iter().zip(&widths).enumerate();
            let cells = cells.map(|(column, (cell, width))| match column {
                0 => format!("{cell:width$}"),
                _ => format!("  {cell:>width$}"),
            });
            format!("{}\n", cells.collect::<String>().trim_end())
        };
        lines().map(line).collect()
    }

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
