//! A document with tables and figures, rendered as Markdown or as one self-contained page.

use std::fmt;

use crate::{
    chart::Chart,
    svg::{ChartError, WIDTH, svg},
};

/// A part of a document. Text may have Markdown's marks `**` (strong) and `` ` `` (code).
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A heading: its level and its text.
    Title(u8, String),
    /// A paragraph.
    Text(String),
    /// A list of lines.
    List(Vec<String>),
    /// Rows under a header.
    Table(Table),
    /// A figure.
    Figure(Chart),
    /// A file's name and its text, collapsed in a page.
    Code(String, String),
}

/// A table: a header, and rows with at most as many cells.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table(Vec<Vec<String>>);

/// Renders Markdown. Figures are files `figures/NAME.svg` beside it.
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

/// Renders a page that works offline.
///
/// # Errors
/// If a chart cannot be drawn.
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

/// The stylesheet of the live page.
const STYLE: &str = include_str!("../../../dashboards/page/page.css");
/// Shows the values of a chart under the pointer.
const POINTER: &str = include_str!("../../../dashboards/page/pointer.js");

impl Table {
    /// Creates a table with this header and no rows.
    pub fn new<Cell: Into<String>>(header: impl IntoIterator<Item = Cell>) -> Self {
        Self(vec![header.into_iter().map(Into::into).collect()])
    }

    /// Adds a row. Trailing cells may be left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }

    /// Adds rows.
    pub fn with(mut self, rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        self.0.extend(rows);
        self
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let (header, rows) = self.split();
        let rule = format!("|---{}|\n", "|---:".repeat(header.len().saturating_sub(1)));
        let rows: String = rows.iter().map(|row| line(row)).collect();
        format!("{}{rule}{rows}", line(header))
    }

    fn html(&self) -> String {
        let row = |cells: &[String], tag: &str| {
            let cells: String = cells
                .iter()
                .map(|cell| format!("<{tag}>{}</{tag}>", inline(cell)))
                .collect();
            format!("<tr>{cells}</tr>\n")
        };
        let (header, rows) = self.split();
        let rows: String = rows.iter().map(|cells| row(cells, "td")).collect();
        format!(
            "<div class=\"table\"><table>\n<thead>{}</thead>\n<tbody>{rows}</tbody>\n</table></div>\n",
            row(header, "th")
        )
    }

    fn split(&self) -> (&[String], &[Vec<String>]) {
        self.0
            .split_first()
            .map_or((&[], &[]), |(header, rows)| (header, rows))
    }
}

/// Text for a terminal: columns of numbers are right-aligned, columns of words left-aligned.
impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (header, rows) = self.split();
        let column = |number: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(number));
            let width = cells.map(|cell| cell.chars().count()).max();
            let mut cells = rows.iter().filter_map(|row| row.get(number));
            (width.unwrap_or(0), cells.all(|cell| is_number(cell)))
        };
        let columns: Vec<_> = (0..header.len()).map(column).collect();
        for row in &self.0 {
            let cells = row.iter().zip(&columns).map(|(cell, &(width, right))| {
                if right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:width$}")
                }
            });
            let line = cells.collect::<Vec<_>>().join("  ");
            writeln!(formatter, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Whether a cell is a number, possibly in percent, or stands for an unknown number.
fn is_number(cell: &str) -> bool {
    let number = cell.trim_end_matches([' ', '%', '?', '-']);
    number.is_empty() || number.parse::<f64>().is_ok()
}

/// Escapes text for HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// Converts marked text to HTML.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_to_the_right_and_words_to_the_left() {
        let mut table = Table::new(["domain", "rows", "share", "state"]);
        table.row(["rain", "7", "80 %", "as it was"].map(str::to_owned));
        table.row(["fog", "10"].map(str::to_owned));
        table.row(["a longer one", "1234", "", "new"].map(str::to_owned));
        let expected = "domain        rows  share  state\n\
                        rain             7   80 %  as it was\n\
                        fog             10\n\
                        a longer one  1234         new\n";
        assert_eq!(table.to_string(), expected);
    }
}
