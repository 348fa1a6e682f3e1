//! Results on standard output: as tables of text, or as JSON.

use std::{fmt, io::Write};

use serde::Serialize;

/// Prints a result as JSON.
///
/// # Errors
/// `out` cannot be written.
pub fn print_json(result: &impl Serialize, out: &mut dyn Write) -> anyhow::Result<()> {
    Ok(writeln!(out, "{}", serde_json::to_string_pretty(result)?)?)
}

/// A table: columns of numbers go to the right, columns of words to the left.
pub struct TextTable(Vec<Vec<String>>);

impl TextTable {
    /// A table with this header, without rows.
    pub fn new<'a>(header: impl IntoIterator<Item = &'a str>) -> Self {
        Self(vec![header.into_iter().map(str::to_owned).collect()])
    }

    /// Adds a row. Cells at its end may be left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }
}

impl fmt::Display for TextTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (header, rows) = self.0.split_first().ok_or(fmt::Error)?;
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

/// A number, perhaps in percent, or a cell where one is unknown.
fn is_number(cell: &str) -> bool {
    let number = cell.trim_end_matches([' ', '%', '?']);
    number.is_empty() || number.parse::<f64>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_to_the_right_and_words_to_the_left() {
        let mut table = TextTable::new(["domain", "rows", "share", "state"]);
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
