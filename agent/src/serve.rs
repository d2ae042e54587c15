//! The conversation: `Hello` first, then what the controller asks for, until it hangs up.
//!
//! What can't be carried out is refused with a reason. `Refused` ends a request: where steps of a batch were
//! told as started or finished before it, they are, and no further one was begun. Nothing a controller can send
//! makes the agent panic.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tallybook_events::ids::{BootId, Hash, LogId, OperationId};
use tallybook_events::name::HostName;
use tallybook_events::step::{FailureClass, Fence, Phase, Receipt, StepFailure, StepKey};

use crate::admission;
use crate::batch;
use crate::boot;
use crate::fence;
use crate::keeper;
use crate::layout::Layout;
use crate::line::{Incoming, Line};
use crate::link::LineLink;
use crate::protocol::{PROTOCOL, Reply, Request, SendSource, Shown, Start};
use crate::queue::Got;
use crate::receipts::{self, Journal};
use crate::secret::Secrets;
use crate::step::{Link, StepKind, fail, failure};
use crate::terminal;

/// The sending end of a transfer: reads the tree, and talks to the receiving end through the link.
pub type SendTree = fn(&SendSource, &Layout, &mut dyn Link) -> Result<(), StepFailure>;

/// What an agent can do. Tests have their own.
#[derive(Clone, Copy)]
pub struct Deeds {
    /// The kinds of steps.
    pub table: &'static [StepKind],
    /// The sending end of transfers, where this agent has one.
    pub send: Option<SendTree>,
    /// The BLAKE3 of its program, where that could be read.
    pub program: Option<Hash>,
}

/// What is known once both ends said hello.
pub(crate) struct Site<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) deeds: Deeds,
    pub(crate) log: LogId,
    pub(crate) host: &'a HostName,
    pub(crate) boot: BootId,
    /// What the controller told of secrets.
    pub(crate) secrets: Secrets,
}

impl Site<'_> {
    /// The failure as it may be told and kept: without secrets.
    pub(crate) fn cleaned(&self, failure: StepFailure) -> StepFailure {
        let mask = self.secrets.mask();
        StepFailure {
            message: mask.clean_text(&failure.message),
            hint: failure.hint.map(|hint| mask.clean_text(&hint)),
            ..failure
        }
    }
}

/// Waiting for the controller has no limit: it may think. The line's end ends it.
const FOREVER: Duration = Duration::from_secs(3600);

/// Speaks the protocol until the other end hangs up. Returns whether the conversation went as it should.
pub fn serve(
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    layout: &Layout,
    deeds: Deeds,
) -> bool {
    let line = Line::open(input, output);
    let result = converse(&line, layout, deeds);
    if let Err(failure) = &result {
        line.say(&Reply::Refused(failure.clone()));
    }
    line.finish();
    result.is_ok()
}

fn converse(line: &Line, layout: &Layout, deeds: Deeds) -> Result<(), StepFailure> {
    let Some(hello) = next(line)? else {
        return Ok(());
    };
    let Request::Hello {
        protocol,
        log,
        host,
    } = hello
    else {
        return Err(fail(
            FailureClass::Unknown,
            "the controller did not say hello",
        ));
    };
    if protocol != PROTOCOL {
        return Err(fail(
            FailureClass::Unknown,
            format!("the controller speaks protocol {protocol}, this agent {PROTOCOL}"),
        ));
    }
    let boot = boot::id()?;
    line.say(&Reply::Hello {
        protocol: PROTOCOL,
        program: deeds.program,
        boot,
        hostname: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        time_unix_us: now_unix_us(),
        journal: receipts::identity(layout, log),
        journal_len: receipts::len(layout, log),
        // One that can't be read is told as such by whatever is to be done.
        seen: fence::read(&fence::path(layout, log), log)
            .ok()
            .flatten()
            .map(|seen| seen.mark),
    });
    let mut site = Site {
        layout,
        deeds,
        log,
        host: &host,
        boot,
        secrets: Secrets::default(),
    };
    while let Some(request) = next(line)? {
        if let Request::Secrets(told) = request {
            site.secrets = Secrets::new(told.values);
            continue;
        }
        answer(&site, line, request).map_err(|failure| site.cleaned(failure))?;
        if keeper::is_terminated() {
            break;
        }
    }
    Ok(())
}

fn answer(site: &Site<'_>, line: &Line, request: Request) -> Result<(), StepFailure> {
    match request {
        Request::MakeJournal => make_journal(site, line),
        Request::Run { shown, batch } => batch::run(site, line, &shown, batch),
        Request::Probe(batch) => batch::probe(site, line, &batch),
        Request::Adopt(batch) => batch::adopt(site, line, &batch),
        Request::Receipts {
            shown,
            fence,
            operation,
            starts,
        } => {
            // Only once nobody carries out a step of it, the receipts are all there will be.
            let _lock = batch::lock_operation(site, line, operation)?;
            give_up(site, line, &shown, fence, &starts)?;
            report(site, line, operation)
        }
        Request::Operations => {
            let known = receipts::operations(site.layout, site.log)
                .map_err(|error| failure(FailureClass::Host, &error))?;
            line.say(&Reply::Operations(known));
            Ok(())
        }
        Request::Forget { shown, operations } => forget(site, line, &shown, &operations),
        Request::Send { shown, source } => send(site, line, &shown, &source),
        Request::Session { shown, request } => {
            let mut standing = admission::standing(site.log, &shown)?;
            admission::pass_on_full_disk(site, line, &mut standing)?;
            line.say(&Reply::Admitted);
            terminal::session(site, line, request)
        }
        // What was typed, or said to stop, after what it was meant for had ended.
        Request::Input(_) | Request::InputEnd | Request::Resize { .. } | Request::Stop => Ok(()),
        Request::Peer(_) | Request::PeerLost(_) | Request::Proof(_) => Ok(()),
        // Heard where requests are taken in.
        Request::Secrets(_) => Ok(()),
        Request::Hello { .. } => Err(fail(FailureClass::Unknown, "hello was said already")),
    }
}

fn next(line: &Line) -> Result<Option<Request>, StepFailure> {
    loop {
        match line.next(FOREVER) {
            Got::Item(Incoming::Request(request)) => return Ok(Some(request)),
            Got::Item(Incoming::Broken(why)) => {
                let message = format!("what the controller sent can't be understood: {why}");
                return Err(fail(FailureClass::Unknown, message));
            }
            Got::Nothing => {}
            Got::Closed => return Ok(None),
        }
    }
}

fn make_journal(site: &Site<'_>, line: &Line) -> Result<(), StepFailure> {
    let mut journal = Journal::open(site.layout, site.log, &mut |_| {})
        .map_err(|error| failure(FailureClass::Host, &error))?;
    // On a full disk, the first step that is to begin is told; an undo may go on.
    let _told_then = journal.reserve();
    line.say(&Reply::Journal(journal.live()));
    Ok(())
}

/// Sees to it that these starts, as far as they were not begun, never are: each has a receipt then, whatever is still under way.
fn give_up(
    site: &Site<'_>,
    line: &Line,
    shown: &Shown,
    fence: Fence,
    starts: &[Start],
) -> Result<(), StepFailure> {
    if starts.is_empty() {
        return Ok(());
    }
    let mut standing = admission::standing(site.log, shown)?;
    admission::pass_on_full_disk(site, line, &mut standing)?;
    let mut unbegun: BTreeMap<StepKey, &Start> =
        starts.iter().map(|start| (start.key, start)).collect();
    let mut journal = Journal::open(site.layout, site.log, &mut |receipt| {
        unbegun.remove(&receipt.key);
    })
    .map_err(|error| failure(FailureClass::Host, &error))?;
    for start in unbegun.into_values() {
        let receipt = Receipt {
            key: start.key,
            fence,
            kind: start.kind.clone(),
            boot: site.boot,
            time_unix_us: now_unix_us(),
            phase: Phase::GivenUp,
        };
        journal
            .append_from_reserve(&receipt)
            .map_err(|error| failure(batch::io_class(&error), &error))?;
    }
    // Crash boundary: from here on none of them is begun.
    Ok(())
}

/// Leaves out the receipts of operations that are over.
fn forget(
    site: &Site<'_>,
    line: &Line,
    shown: &Shown,
    operations: &BTreeSet<OperationId>,
) -> Result<(), StepFailure> {
    let mut standing = admission::standing(site.log, shown)?;
    admission::pass(site, line, &mut standing)?;
    let mut journal = Journal::open(site.layout, site.log, &mut |_| {})
        .map_err(|error| failure(FailureClass::Host, &error))?;
    let forgotten = journal
        .forget(operations)
        .map_err(|error| failure(batch::io_class(&error), &error))?;
    line.say(&Reply::Forgotten(forgotten.receipts));
    Ok(())
}

fn report(site: &Site<'_>, line: &Line, operation: OperationId) -> Result<(), StepFailure> {
    let report = receipts::report(site.layout, site.log, operation)
        .map_err(|error| failure(FailureClass::Host, &error))?;
    line.say(&Reply::Receipts(report));
    Ok(())
}

fn send(
    site: &Site<'_>,
    line: &Line,
    shown: &Shown,
    source: &SendSource,
) -> Result<(), StepFailure> {
    let Some(send) = site.deeds.send else {
        return Err(fail(FailureClass::Unknown, "this agent can't send trees"));
    };
    let mut standing = admission::standing(site.log, shown)?;
    admission::pass_on_full_disk(site, line, &mut standing)?;
    let mut link = LineLink::new(line, &site.secrets, None);
    let sent = send(source, site.layout, &mut link);
    link.end();
    sent?;
    line.say(&Reply::SendEnded);
    Ok(())
}

/// Microseconds since 1970-01-01 UTC by this host's clock; 0 when it says something earlier.
pub(crate) fn now_unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}
