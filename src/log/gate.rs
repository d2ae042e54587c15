//! The gate of a simulation in the log's calls: each passes it before it is made and once it was answered, and is answered
//! before anything else goes on.
//!
//! It decides nothing about what a call does. A log without one, as every command has it, is not held up.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::Error;

/// What kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Events are appended.
    Append,
    /// Something is read.
    Read,
}

/// Where a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Nothing of it was done.
    Before,
    /// It is done, and who made it was not told.
    After,
}

/// Lets a call pass. One that never does is one whose process died there; an error refuses it, before it is made.
pub type Passing = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// Asked by every call, on both sides.
pub type Gate = Arc<dyn Fn(Call, Side) -> Passing + Send + Sync>;

/// Makes a call, through the gate of a simulation where there is one.
pub(super) async fn call<T>(
    gate: Option<&Gate>,
    what: Call,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(gate) = gate else {
        return answer.await;
    };
    gate(what, Side::Before).await?;
    let answered = at_once(answer);
    gate(what, Side::After).await?;
    answered
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits in this thread: what the log's own threads take for it is no time for anybody else.
fn at_once<T>(answer: impl Future<Output = T>) -> T {
    // Without the runtime's budget: it is given anew only to tasks that yield.
    let mut answer = pin!(tokio::task::unconstrained(answer));
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match answer.as_mut().poll(&mut context) {
            Poll::Ready(answered) => return answered,
            Poll::Pending => thread::park(),
        }
    }
}
