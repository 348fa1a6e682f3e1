//! The table of domains: the columns that fit beside each other, and the rows that fit below each other.

use ddk_run::view::{Domain, RunStatus};
use ratatui::{
    Frame,
    layout::{
        Constraint::{Fill, Length},
        Rect,
    },
    style::Stylize,
    text::Line,
    widgets::{Block, Borders, Cell, Row, Table},
};

use super::{gaps, number, percent};
use crate::watch::Scroll;

/// A column: its name, its width, and its rank if there is not enough room for all.
type Column = (&'static str, u16, u8);

/// The columns after the name.
const COLUMNS: [Column; 7] = [
    ("gap", 7, 0),
    ("at start", 8, 1),
    ("student", 9, 3),
    ("teacher", 9, 5),
    ("ratio", 7, 4),
    ("weight", 7, 2),
    ("tokens", 7, 6),
];
/// Width of the column of names, if the names are that long.
const NAME: (u16, u16) = (10, 24);

/// Rows that are no domains: the title and the header, and the line below if there are borders.
pub(super) fn frame_rows(has_borders: bool) -> u16 {
    2 + u16::from(has_borders)
}

/// Draws as many domains as fit, from the first visible one on.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    area: Rect,
    status: &RunStatus,
    has_borders: bool,
    scroll: &mut Scroll,
) {
    let rows = area.height.saturating_sub(frame_rows(has_borders)) as usize;
    let (top, below) = scroll.show(rows, status.domains.len());
    let title = format!(" {} ", gaps(status));
    let more = match (top, below) {
        (0, 0) => String::new(),
        (0, below) => format!(" {below} more below "),
        (top, 0) => format!(" {top} more above "),
        (top, below) => format!(" {top} more above, {below} below "),
    };
    let borders = if has_borders {
        Borders::ALL
    } else {
        Borders::TOP
    };
    let mut block = Block::new().borders(borders).title(title);
    block = if has_borders {
        block.title_bottom(Line::from(more).right_aligned())
    } else {
        block.title(Line::from(more).right_aligned())
    };
    let names = status
        .domains
        .iter()
        .map(|domain| domain.name.chars().count());
    let name = (names.max().unwrap_or(0) as u16).clamp(NAME.0, NAME.1);
    let inside = area.width.saturating_sub(2 * u16::from(has_borders));
    let columns = that_fit(inside.saturating_sub(name));
    let header = ["domain"]
        .into_iter()
        .chain(columns.iter().map(|&index| COLUMNS[index].0));
    let header = row(header.map(str::to_owned)).dim();
    let visible = status.domains.iter().skip(top).take(rows);
    let rows = visible.map(|domain| {
        let [name, values @ ..] = cells(domain);
        let values = columns.iter().map(|&index| values[index].clone());
        row([name].into_iter().chain(values))
    });
    let widths = columns.iter().map(|&index| Length(COLUMNS[index].1));
    let first = if columns.len() == COLUMNS.len() {
        Length(name.max(14))
    } else {
        Fill(1)
    };
    let table = Table::new(rows, [first].into_iter().chain(widths))
        .header(header)
        .block(block);
    frame.render_widget(table, area);
}

/// The indices of the most important columns that fit into `room`, from left to right.
fn that_fit(room: u16) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..COLUMNS.len()).collect();
    ranked.sort_by_key(|&index| COLUMNS[index].2);
    let mut left = room;
    let fits = |index: &usize| {
        let needed = COLUMNS[*index].1 + 1;
        let fits = needed <= left;
        left = if fits { left - needed } else { 0 };
        fits
    };
    let mut chosen: Vec<usize> = ranked.into_iter().take_while(fits).collect();
    chosen.sort_unstable();
    chosen
}

fn row(cells: impl Iterator<Item = String>) -> Row<'static> {
    let cells = cells.enumerate().map(|(column, text)| match column {
        0 => Line::from(text),
        _ => Line::from(text).right_aligned(),
    });
    Row::new(cells.map(Cell::from))
}

/// The names of all columns.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ["domain"].into_iter().chain(COLUMNS.map(|column| column.0))
}

/// The cells of all columns.
pub(super) fn cells(domain: &Domain) -> [String; 8] {
    [
        domain.name.clone(),
        number(domain.gap, 3),
        number(domain.gap_at_start, 3),
        number(domain.student_perplexity, 2),
        number(domain.teacher_perplexity, 2),
        number(domain.ratio, 3),
        percent(domain.weight),
        percent(domain.token_share),
    ]
}
