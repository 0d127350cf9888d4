//! Tables: fitted to the width of a terminal, with long cells truncated by an ellipsis; otherwise complete, separated by spaces.
use super::super::context::Terminal;
use super::visible::one_line;
use comfy_table::{Attribute, Cell as Drawn, CellAlignment, Color, ColumnConstraint, ContentArrangement, Row, Width};

/// The colour of a cell, by meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Bad,
    Active,
    Faint,
}

#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn new(text: impl ToString) -> Cell {
        Cell {
            text: one_line(&text.to_string()),
            tone: Tone::Plain,
        }
    }
    /// The value, or `-` if there is none.
    pub(crate) fn or_dash(text: Option<impl ToString>) -> Cell {
        match text {
            Some(text) => Cell::new(text),
            None => Cell::new("-").tone(Tone::Faint),
        }
    }
    pub(crate) fn tone(mut self, tone: Tone) -> Cell {
        self.tone = tone;
        self
    }
}

struct Column {
    title: &'static str,
    right: bool,
    /// May be truncated to fit the terminal.
    flexible: bool,
}

#[derive(Default)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new() -> Table {
        Table::default()
    }
    /// Never truncated.
    pub(crate) fn column(mut self, title: &'static str) -> Table {
        self.columns.push(Column {
            title,
            right: false,
            flexible: false,
        });
        self
    }
    /// Never truncated, aligned right.
    pub(crate) fn number(mut self, title: &'static str) -> Table {
        self.columns.push(Column {
            title,
            right: true,
            flexible: false,
        });
        self
    }
    /// Truncated if the terminal is too narrow.
    pub(crate) fn text(mut self, title: &'static str) -> Table {
        self.columns.push(Column {
            title,
            right: false,
            flexible: true,
        });
        self
    }
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The lines, each ended by a newline.
    pub(crate) fn render(&self, terminal: &Terminal) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        // Truncates at any character, not only between words: no cell contains this separator.
        table.set_delimiter('\0');
        if terminal.stdout {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(terminal.width);
        } else {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        if terminal.color {
            table.enforce_styling().style_text_only();
        } else {
            table.force_no_tty();
        }
        table.set_header(self.columns.iter().map(|c| Drawn::new(c.title).add_attribute(Attribute::Bold)));
        for cells in &self.rows {
            let mut row = Row::from(cells.iter().map(draw).collect::<Vec<_>>());
            row.max_height(1);
            table.add_row(row);
        }
        let last = self.columns.len().saturating_sub(1);
        for (index, column) in self.columns.iter().enumerate() {
            let Some(drawn) = table.column_mut(index) else { continue };
            let padding = if index == last { 0 } else { 2 };
            drawn.set_padding((0, padding));
            if column.right {
                drawn.set_cell_alignment(CellAlignment::Right);
            }
            // Titles are never broken: a terminal that is too narrow wraps the lines instead.
            drawn.set_constraint(if column.flexible {
                let title = u16::try_from(column.title.len()).unwrap_or(u16::MAX);
                ColumnConstraint::LowerBoundary(Width::Fixed(title.saturating_add(padding)))
            } else {
                ColumnConstraint::ContentWidth
            });
        }
        let mut text = table.trim_fmt();
        text.push('\n');
        text
    }
}

fn draw(cell: &Cell) -> Drawn {
    let drawn = Drawn::new(&cell.text);
    match cell.tone {
        Tone::Plain => drawn,
        Tone::Good => drawn.fg(Color::Green),
        Tone::Bad => drawn.fg(Color::Red),
        Tone::Active => drawn.fg(Color::Cyan),
        Tone::Faint => drawn.add_attribute(Attribute::Dim),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Table {
        let mut table = Table::new()
            .column("TASK")
            .column("STATE")
            .number("SIZE")
            .text("INPUT")
            .text("ERROR");
        table.row(vec![
            Cell::new("1.0"),
            Cell::new("ok").tone(Tone::Good),
            Cell::new(7),
            Cell::new("[\"a.txt\"]"),
            Cell::or_dash(None::<&str>),
        ]);
        table.row(vec![
            Cell::new("1.11"),
            Cell::new("error").tone(Tone::Bad),
            Cell::new(12345),
            Cell::new("[\"a file with a very long name indeed, such as no one types.txt\"]"),
            Cell::new("ValueError: two lines\nand a bell\x07"),
        ]);
        table
    }

    #[test]
    fn piped_tables_are_whole_and_aligned() {
        insta::assert_snapshot!(sample().render(&Terminal::NONE), @r#"
        TASK  STATE   SIZE  INPUT                                                              ERROR
        1.0   ok         7  ["a.txt"]                                                          -
        1.11  error  12345  ["a file with a very long name indeed, such as no one types.txt"]  ValueError: two lines\nand a bell\u{7}
        "#);
    }

    #[test]
    fn a_terminal_of_80_columns() {
        let terminal = Terminal {
            stdout: true,
            ..Terminal::NONE
        };
        let text = sample().render(&terminal);
        insta::assert_snapshot!(text, @r#"
        TASK  STATE   SIZE  INPUT                          ERROR
        1.0   ok         7  ["a.txt"]                      -
        1.11  error  12345  ["a file with a very long na…  ValueError: two lines\nand a…
        "#);
    }

    proptest! {
        #[test]
        fn each_row_is_one_line_however_narrow_the_terminal(width in 1u16..200, input in "\\PC{0,200}", error in ".{0,80}") {
            let mut table = Table::new().column("TASK").text("INPUT").text("ERROR");
            table.row(vec![Cell::new("1.0"), Cell::new(&input), Cell::new(&error)]);
            let text = table.render(&Terminal { stdout: true, width, ..Terminal::NONE });
            prop_assert_eq!(text.lines().count(), 2);
        }
    }
}
