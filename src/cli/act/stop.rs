//! Ctrl-C while an operation is carried out: the first ends it in good order, the second ends the process.

use std::sync::Arc;

use tokio::sync::watch;

use super::super::Exit;
use crate::engine::reach::Fleet;
use crate::engine::{Engine, Limits};
use crate::log::Log;
use crate::render::progress::Progress;

/// An engine that stops at the first Ctrl-C; the second ends the process at once.
pub(in crate::cli) fn engine(log: &Log, fleet: Fleet, progress: &Progress) -> Engine {
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        ) else {
            // Keeps the sender: without signals nobody asks to stop.
            std::future::pending::<()>().await;
            return;
        };
        let mut asked = false;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if std::mem::replace(&mut asked, true) {
                eprintln!(
                    "left at once; `tallybook op list --unfinished` shows what can be resumed"
                );
                std::process::exit(i32::from(Exit::Interrupted.code()));
            }
            stop.send_replace(true);
        }
    });
    Engine::new(
        log.clone(),
        Arc::new(fleet),
        progress.watch(),
        stopped,
        Limits::default(),
    )
}
