//! The cells of a matrix and what came of each.

use std::collections::BTreeMap;

/// What came of a cell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// It was named.
    Named(String),
    /// Told as an append that was never acknowledged.
    Torn,
    /// Nothing is wrong, for this reason.
    Nothing(&'static str),
    /// Not as it has to be.
    Failed(String),
}

/// All cells, by what they are.
#[derive(Default)]
pub(crate) struct Table(BTreeMap<String, Outcome>);

impl Table {
    pub(crate) fn put(&mut self, cell: String, outcome: Outcome) {
        let before = self.0.insert(cell.clone(), outcome);
        assert_eq!(before, None, "{cell} is there twice");
    }

    pub(crate) fn take(&mut self, other: Table) {
        for (cell, outcome) in other.0 {
            self.put(cell, outcome);
        }
    }

    /// Prints every cell, and makes sure that none failed and that there are so many of each: named, torn, nothing.
    pub(crate) fn finish(self, expected: (usize, usize, usize)) {
        assert_eq!(self.print(), expected);
    }

    /// The same where it is not known how many of them have nothing to name.
    pub(crate) fn finish_all(self, expected: usize) {
        let (named, torn, nothing) = self.print();
        assert_eq!((named + nothing, torn), (expected, 0));
        assert!(named > 0, "nothing was named");
    }

    /// How many are named, torn, and nothing.
    fn print(&self) -> (usize, usize, usize) {
        let (mut named, mut torn, mut nothing) = (0, 0, 0);
        let mut failed = Vec::new();
        for (cell, outcome) in &self.0 {
            let what = match outcome {
                Outcome::Named(what) => {
                    named += 1;
                    format!("named: {}", what.trim_end())
                }
                Outcome::Torn => {
                    torn += 1;
                    "told as a torn end".to_owned()
                }
                Outcome::Nothing(why) => {
                    nothing += 1;
                    format!("nothing to name: {why}")
                }
                Outcome::Failed(how) => {
                    failed.push(format!("{cell}: {how}"));
                    format!("FAILED: {how}")
                }
            };
            println!("{cell:<50} {what}");
        }
        println!("{named} named, {torn} torn, {nothing} nothing to name");
        let failures = failed.join("\n");
        assert!(failed.is_empty(), "{} cells:\n{failures}", failed.len());
        (named, torn, nothing)
    }
}
