//! What is said of a step while it is carried out names that step, and no other of its chain.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tallybook::engine::Outcome;

use crate::deed::Deed;
use crate::stage::{Stage, step};
use crate::world::{Fault, Line};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// On one thread, so that what is said is caught here.
#[tokio::test]
async fn each_outcome_names_its_own_step() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let stage = Stage::new(&["a"]).await;
    stage
        .world
        .host("a")
        .befall(Fault::CutAtFinished, Line::Breaks);
    let plan = (0..3).map(|index| match index {
        0 => step(index, "a", &[], Deed::Note),
        _ => step(index, "a", &[index - 1], Deed::Note),
    });
    let (id, outcome) = stage.perform(plan.collect()).await;
    assert!(matches!(outcome, Outcome::Succeeded), "{outcome:?}");
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let recorded = |line: &Value| line["fields"]["message"] == "outcome recorded";
    let recorded: Vec<Value> = lines.filter(recorded).collect();
    let named = |key: &str| -> Vec<&str> {
        recorded
            .iter()
            .map(|line| line["span"][key].as_str().unwrap())
            .collect()
    };
    // The first by its receipt, afterwards.
    assert_eq!(named("step"), ["0", "1", "2"], "{text}");
    assert_eq!(named("host"), ["a"; 3]);
    assert!(named("operation").iter().all(|it| *it == id.short()));
    assert!(named("attempt").iter().all(|attempt| !attempt.is_empty()));
}
