//! A document with tables and figures, rendered as Markdown or as one self-contained page.

use std::{fmt, iter};

use crate::{
    chart::Chart,
    svg::{ChartError, WIDTH, svg},
};

/// A document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The title of its page.
    pub title: String,
    /// Its parts in order.
    pub blocks: Vec<Block>,
}

/// A part of a document. Text may have Markdown's marks `**` (strong) and `` ` `` (code).
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A heading: its level and its text.
    Title(u8, String),
    /// A paragraph.
    Text(String),
    /// Names and their values.
    Facts(Vec<(String, String)>),
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
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Document {
    /// Renders Markdown. Its figures are files `figures/NAME.svg` beside it (see [`Self::svgs`]).
    pub fn markdown(&self) -> String {
        let blocks = self.blocks.iter().map(|block| match block {
            Block::Title(level, text) => format!("{} {text}\n", "#".repeat(usize::from(*level))),
            Block::Text(text) => format!("{text}\n"),
            Block::Facts(facts) => {
                let line = |(name, value): &(String, String)| format!("- {name}: {value}\n");
                facts.iter().map(line).collect()
            }
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

    /// Renders one page that works offline.
    ///
    /// # Errors
    /// If a chart cannot be drawn.
    pub fn html(&self) -> Result<String, ChartError> {
        let html = |block: &Block| {
            Ok(match block {
                Block::Title(level, text) => format!("<h{level}>{}</h{level}>\n", inline(text)),
                Block::Text(text) => format!("<p>{}</p>\n", inline(text)),
                Block::Facts(facts) => {
                    let pair = |(name, value): &(String, String)| {
                        format!(
                            "<div><dt>{}</dt><dd>{}</dd></div>",
                            inline(name),
                            inline(value)
                        )
                    };
                    let pairs = facts.iter().map(pair).collect::<String>();
                    format!("<dl class=\"about\">{pairs}</dl>\n")
                }
                Block::List(lines) => {
                    let item = |line: &String| format!("<li>{}</li>", inline(line));
                    format!("<ul>{}</ul>\n", lines.iter().map(item).collect::<String>())
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
        let body: Result<String, ChartError> = self.blocks.iter().map(html).collect();
        let body = body?;
        Ok(format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{} - DDK</title>\n<style>{STYLE}</style>\n\
         </head>\n<body class=\"report\">\n{body}<script type=\"module\">{POINTER}</script>\n</body>\n</html>\n",
            escape(&self.title)
        ))
    }

    /// Its figures.
    pub fn charts(&self) -> impl Iterator<Item = &Chart> {
        self.blocks.iter().filter_map(|block| match block {
            Block::Figure(chart) => Some(chart),
            _ => None,
        })
    }

    /// Its figures as files: name and content.
    ///
    /// # Errors
    /// If a chart cannot be drawn.
    pub fn svgs(&self) -> Result<Vec<(String, String)>, ChartError> {
        let file = |chart: &Chart| Ok((format!("{}.svg", chart.name), svg(chart, WIDTH)?));
        self.charts().map(file).collect()
    }
}

/// The stylesheet of the live page.
const STYLE: &str = include_str!("../../../dashboards/page/page.css");
/// Shows the values of a chart under the pointer.
const POINTER: &str = include_str!("../../../dashboards/page/pointer.js");

impl Table {
    /// Creates a table with this header and no rows.
    pub fn new<Cell: Into<String>>(header: impl IntoIterator<Item = Cell>) -> Self {
        Self {
            header: header.into_iter().map(Into::into).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row. Trailing cells may be left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Adds rows.
    pub fn with(mut self, rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        self.rows.extend(rows);
        self
    }

    /// The same table without Markdown's marks: a star after a cell stands for bold.
    pub(crate) fn plain(mut self) -> Self {
        for cell in self.rows.iter_mut().flatten() {
            if cell.contains("**") {
                *cell = cell.replace("**", "") + "*";
            }
        }
        self
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let numbers = "|---:".repeat(self.header.len().saturating_sub(1));
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}|---{numbers}|\n{rows}", line(&self.header))
    }

    fn html(&self) -> String {
        let words: Vec<bool> = (0..self.header.len())
            .map(|column| !self.is_numeric(column))
            .collect();
        let row = |cells: &[String], tag: &str| {
            let cell = |(cell, is_text): (&String, &bool)| {
                let class = if *is_text { " class=\"text\"" } else { "" };
                format!("<{tag}{class}>{}</{tag}>", inline(cell))
            };
            let cells: String = cells.iter().zip(&words).map(cell).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = self.rows.iter().map(|cells| row(cells, "td")).collect();
        format!(
            "<div class=\"table\"><table>\n<thead>{}</thead>\n<tbody>{rows}</tbody>\n</table></div>\n",
            row(&self.header, "th")
        )
    }

    /// Whether all cells of a column are numbers, which stand on the right.
    fn is_numeric(&self, column: usize) -> bool {
        let mut cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.all(|cell| is_number(cell))
    }
}

/// Text for a terminal: columns of numbers are right-aligned, columns of words left-aligned.
impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = |(number, name): (usize, &String)| {
            let cells = || self.rows.iter().filter_map(|row| row.get(number));
            let widths = cells().chain([name]).map(|cell| cell.chars().count());
            let width = widths.max().unwrap_or(0);
            (width, self.is_numeric(number))
        };
        let columns: Vec<_> = self.header.iter().enumerate().map(column).collect();
        for row in iter::once(&self.header).chain(&self.rows) {
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
        table.row(["rain", "7", "80%", "as it was"].map(str::to_owned));
        table.row(["fog", "10"].map(str::to_owned));
        table.row(["a longer one", "1234", "", "new"].map(str::to_owned));
        let expected = "domain        rows  share  state\n\
                        rain             7    80%  as it was\n\
                        fog             10\n\
                        a longer one  1234         new\n";
        assert_eq!(table.to_string(), expected);
    }
}
