//! The ways out of an operation that is not done: the command, and what it would do.

use serde::Serialize;
use tallybook_events::ids::OperationId;
use tallybook_replay::operation::{Operation, OperationStatus, Step, StepStatus};
use tallybook_replay::undo;

use crate::render::count;

/// What can be done about an operation.
#[derive(Debug, Serialize)]
pub(super) struct Way {
    /// What to type.
    command: String,
    /// What it does.
    does: String,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` {}", self.command, self.does)
    }
}

/// What can be done about an operation as it stands; nothing where it is done, or is a session's. `by` takes it back.
pub(super) fn out_of(operation: &Operation, by: Option<OperationId>) -> Vec<Way> {
    let short = operation.id.short();
    let back = || Way {
        command: format!("tallybook op rollback {short}"),
        does: taken_back(operation),
    };
    if operation.status == OperationStatus::Abandoned {
        let is_undo = operation.intent.is_rollback();
        return Some(back()).filter(|_| !is_undo).into_iter().collect();
    }
    if operation.status.is_final() || operation.intent.is_session() {
        return Vec::new();
    }
    if operation.status == OperationStatus::RollingBack {
        let retry = Way {
            command: format!("tallybook op retry-undo {short}"),
            does: "goes on with taking it back".to_owned(),
        };
        let give_up = by.map(|by| Way {
            command: format!("tallybook op abandon {} --reason TEXT", by.short()),
            does: "gives that up; where some of it is done, this one as well".to_owned(),
        });
        return std::iter::once(retry).chain(give_up).collect();
    }
    let mut ways = Vec::new();
    if operation.is_planned {
        ways.push(Way {
            command: format!("tallybook op resume {short}"),
            does: resumed(operation),
        });
        if operation.steps.iter().any(is_once_in_doubt) {
            ways.push(Way {
                command: format!("tallybook op resume --once-again {short}"),
                does:
                    "starts once more what is meant to be started only once: look at the host first"
                        .to_owned(),
            });
        }
    }
    if !operation.intent.is_rollback() {
        ways.extend(past_others(operation));
        ways.push(back());
    }
    ways.push(Way {
        command: format!("tallybook op abandon {short} --reason TEXT"),
        does: given_up(operation),
    });
    ways
}

fn is_once_in_doubt(step: &Step) -> bool {
    step.plan.once && matches!(step.status, StepStatus::Doubted { .. })
}

/// What can be done where others are in the way of steps, or nobody can tell.
fn past_others(operation: &Operation) -> Vec<Way> {
    let short = operation.id.short();
    let mut ways = Vec::new();
    let blocked = operation
        .steps
        .iter()
        .filter(|step| step.is_blocked())
        .count();
    if blocked > 0 {
        ways.push(Way {
            command: format!("tallybook op resume --force --reason TEXT {short}"),
            does: format!(
                "sets aside what others have in the place of {}, and puts it back when that is undone",
                count(blocked, "step")
            ),
        });
    }
    let can_be_adopted = |step: &&Step| step.is_blocked() || is_once_in_doubt(step);
    let adopted = operation.steps.iter().filter(can_be_adopted).count();
    if adopted > 0 {
        ways.push(Way {
            command: format!("tallybook op adopt {short} --reason TEXT"),
            does: format!(
                "takes what is there for what {} to make, where the host can describe it",
                match adopted {
                    1 => "1 step was".to_owned(),
                    several => format!("{} were", count(several, "step")),
                }
            ),
        });
    }
    ways
}

fn resumed(operation: &Operation) -> String {
    let (mut doubtful, mut failed, mut pending) = (0, 0, 0);
    let mut drifted = 0;
    for step in &operation.steps {
        match step.status {
            StepStatus::Started | StepStatus::Doubted { .. } => doubtful += 1,
            StepStatus::Drifted { .. } => drifted += 1,
            StepStatus::Failed(_) => failed += 1,
            StepStatus::Pending => pending += 1,
            StepStatus::Succeeded { .. } => {}
        }
    }
    let mut parts = Vec::new();
    if doubtful > 0 {
        parts.push(format!(
            "looks at what {} in doubt did",
            count(doubtful, "step")
        ));
    }
    if drifted > 0 {
        parts.push(format!(
            "looks whether {} that drifted can go on",
            count(drifted, "step")
        ));
    }
    if failed > 0 {
        parts.push(format!("tries {} again that failed", count(failed, "step")));
    }
    if pending > 0 {
        parts.push(format!(
            "starts {} that did nothing yet",
            count(pending, "step")
        ));
    }
    let does = match parts.is_empty() {
        true => "says that it is done".to_owned(),
        false => parts.join(", "),
    };
    match operation.status {
        OperationStatus::Running => format!("{does}, where nobody does that now"),
        _ => does,
    }
}

/// What a rollback would do.
pub(super) fn taken_back(operation: &Operation) -> String {
    let plan = undo::plan(operation);
    if let Some(left) = plan.irreversible.first() {
        return format!(
            "is refused: {} can't be undone ({})",
            left.summary, left.why
        );
    }
    let undone = match plan.steps.len() {
        0 => "closes it: there is nothing to undo".to_owned(),
        some => format!("undoes {}", count(some, "step")),
    };
    match plan.kept.len() {
        0 => undone,
        kept => format!("{undone}, and keeps what {} did", count(kept, "step")),
    }
}

fn given_up(operation: &Operation) -> String {
    let claims: Vec<String> = operation.claims.iter().map(ToString::to_string).collect();
    match claims.is_empty() {
        true => "leaves everything as it is".to_owned(),
        false => format!("frees {}; hosts stay as they are", claims.join(", ")),
    }
}
