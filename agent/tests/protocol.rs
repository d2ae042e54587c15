//! What goes over the line, byte for byte. An agent of another version is never spoken to, so bytes may change: but not
//! unseen, and not without a new version.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use tallybook_agent::protocol::{Batch, Call, PROTOCOL, Reply, Request, encode_frame};
use tallybook_events::ids::Blob;
use tallybook_events::step::{Action, FailureClass, StepDone, StepFailure};
use tallybook_testkit::samples;

fn batch(set_aside: bool) -> Batch {
    let receipt = samples::receipts().remove(0);
    Batch {
        fence: receipt.fence,
        calls: vec![Call {
            key: receipt.key,
            kind: "container.publish".to_owned(),
            params: Blob(vec![0x80]),
            action: Action::Forward,
            set_aside,
        }],
        outputs: BTreeMap::new(),
    }
}

#[test]
fn what_is_asked_and_answered_about_the_things_of_others() {
    let key = batch(false).calls[0].key;
    let adopted = Reply::Adopted {
        key,
        done: StepDone {
            changed: false,
            output: Blob(vec![0x80]),
            facts: Vec::new(),
            captured: Vec::new(),
        },
    };
    let refused = Reply::NotAdopted {
        key,
        failure: StepFailure {
            class: FailureClass::Exists,
            message: "it is another one".to_owned(),
            hint: None,
            captured: Vec::new(),
        },
    };
    let frames = [
        ("probe", encode_frame(&Request::Probe(batch(false)))),
        (
            "probe.set_aside",
            encode_frame(&Request::Probe(batch(true))),
        ),
        ("adopt", encode_frame(&Request::Adopt(batch(false)))),
        ("adopted", encode_frame(&adopted)),
        ("not_adopted", encode_frame(&refused)),
    ];
    let mut text = String::new();
    for (name, frame) in frames {
        write!(text, "{name} ").unwrap();
        for byte in frame.unwrap() {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push('\n');
    }
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/protocol/v{PROTOCOL}.hex"));
    if !path.exists() && std::env::var_os("GOLDEN_WRITE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let pinned = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text, pinned,
        "the bytes of version {PROTOCOL} changed, or have no file"
    );
}
