//! Aligned tables. Width is counted in columns of a terminal, and only on a terminal is anything cut.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::color::Ink;
use super::plain;

/// What lies between two columns.
const GAP: &str = "  ";
/// The least a column is cut to.
const WIDTH_MIN: usize = 8;

/// A column's heading and side.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    head: &'static str,
    right: bool,
    width_min: usize,
}

impl Column {
    /// Of text.
    pub const fn left(head: &'static str) -> Self {
        Column {
            head,
            right: false,
            width_min: 0,
        }
    }

    /// Of numbers.
    pub const fn right(head: &'static str) -> Self {
        Column {
            head,
            right: true,
            width_min: 0,
        }
    }

    /// At least so wide: for tables that come in parts.
    pub const fn at_least(self, width_min: usize) -> Self {
        Column { width_min, ..self }
    }
}

/// One cell: its text, safe to show, and its ink.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    ink: Ink,
}

impl Cell {
    /// Text in an ink.
    pub fn inked(ink: Ink, text: impl std::fmt::Display) -> Self {
        Cell {
            text: plain(&text.to_string()),
            ink,
        }
    }

    /// Text, or `-` where there is none.
    pub fn or_dash<T: std::fmt::Display>(text: Option<T>) -> Self {
        text.map_or_else(
            || Cell::inked(Ink::Faint, "-"),
            |text| Cell::from(text.to_string()),
        )
    }
}

impl<T: std::fmt::Display> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell::inked(Ink::Plain, text)
    }
}

/// A table.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    headed: bool,
}

impl Table {
    /// An empty table.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Table {
            columns: columns.into_iter().collect(),
            rows: Vec::new(),
            headed: true,
        }
    }

    /// Without headings: a later part of a table.
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.headed = false;
        self
    }

    /// Adds a row: a cell a column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let row: Vec<Cell> = cells.into_iter().collect();
        debug_assert_eq!(row.len(), self.columns.len(), "a cell a column");
        self.rows.push(row);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Its text: empty when it has no rows. `width` is that of the terminal, where it is one.
    pub fn render(&self, width: Option<usize>, colored: bool) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let widths = self.widths(width);
        let heads = self.columns.iter().map(|column| Cell {
            text: column.head.to_owned(),
            ink: Ink::Head,
        });
        let heads: Vec<Cell> = heads.collect();
        let mut text = String::new();
        for row in self.headed.then_some(&heads).into_iter().chain(&self.rows) {
            text.push_str(&self.line(row, &widths, colored));
            text.push('\n');
        }
        text
    }

    fn line(&self, row: &[Cell], widths: &[usize], colored: bool) -> String {
        let mut line = String::new();
        for (position, ((cell, width), column)) in
            row.iter().zip(widths).zip(&self.columns).enumerate()
        {
            if position > 0 {
                line.push_str(GAP);
            }
            let shown = cut(&cell.text, *width);
            let pad = " ".repeat(width.saturating_sub(shown.width()));
            let last = position + 1 == row.len();
            if column.right {
                line.push_str(&pad);
            }
            line.push_str(&cell.ink.paint(&shown, colored));
            if !column.right && !last {
                line.push_str(&pad);
            }
        }
        line.truncate(line.trim_end().len());
        line
    }

    /// As wide as needed; where the terminal is narrower, the widest columns give way.
    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<usize> = self
            .columns
            .iter()
            .map(|column| column.head.width().max(column.width_min))
            .collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
        let Some(limit) = limit else {
            return widths;
        };
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > limit {
            // Of equals the last one, which is the least of a name.
            let Some(widest) = widths.iter_mut().max() else {
                break;
            };
            if *widest <= WIDTH_MIN {
                break;
            }
            *widest -= 1;
        }
        widths
    }
}

fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut shown = String::new();
    let mut used = 1;
    for c in text.chars() {
        used += c.width().unwrap_or_default();
        if used > width {
            break;
        }
        shown.push(c);
    }
    shown.push('…');
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new([
            Column::left("NAME"),
            Column::right("N"),
            Column::left("WHAT"),
        ]);
        table.row(["böse".into(), 7.into(), "a long enough sentence".into()]);
        table.row(["漢字".into(), 1234.into(), "x\u{1b}[2J".into()]);
        table
    }

    #[test]
    fn columns_are_aligned_by_the_width_of_a_terminal() {
        assert_eq!(
            table().render(None, false),
            "NAME     N  WHAT\n\
             böse     7  a long enough sentence\n\
             漢字  1234  x\\u{1b}[2J\n"
        );
    }

    #[test]
    fn the_widest_column_is_cut_to_the_terminal() {
        assert_eq!(
            table().render(Some(22), false),
            "NAME     N  WHAT\n\
             böse     7  a long en…\n\
             漢字  1234  x\\u{1b}[2J\n"
        );
    }

    #[test]
    fn inks_do_not_count() {
        let mut table = Table::new([Column::left("A"), Column::left("B")]);
        table.row([Cell::inked(Ink::Bad, "x"), "y".into()]);
        assert_eq!(
            table.render(None, true),
            "\u{1b}[1mA\u{1b}[0m  \u{1b}[1mB\u{1b}[0m\n\u{1b}[31mx\u{1b}[0m  y\n"
        );
        assert_eq!(Table::new([Column::left("A")]).render(None, true), "");
    }
}
