//! The table of every kind of step, with what a test's agent has in place of going forward and of undoing.

/// `every_kind!(FORWARD, UNDO)` is that table: both are given the kind's own row first.
macro_rules! every_kind {
    ($forward:path, $undo:path) => {{
        const fn row<const N: usize>() -> StepKind {
            let row = &steps::TABLE[N];
            StepKind {
                kind: row.kind,
                once: row.once,
                summary: row.summary,
                secrets: row.secrets,
                reversal: row.reversal,
                probe: row.probe,
                forward: |params, context| $forward(&steps::TABLE[N], params, context),
                in_the_way: row.in_the_way,
                adopt: row.adopt,
                undo: |params, context, output| $undo(&steps::TABLE[N], params, context, output),
            }
        }
        every_kind!(@row: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33)
    }};
    (@$row:ident: $($number:literal)*) => { [$($row::<$number>()),*] };
}
