//! Ctrl-C while an operation is carried out: the first ends it in good order, the second ends the process.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::super::{Exit, terminal};
use crate::engine::reach::Fleet;
use crate::engine::{Engine, Limits};
use crate::log::Log;
use crate::render::progress::Progress;
use crate::secrets::Declared;

/// An engine that stops at the first Ctrl-C; the second ends the process at once.
pub(in crate::cli) fn engine(
    log: &Log,
    fleet: Fleet,
    progress: &Progress,
    secrets: Arc<Declared>,
) -> Engine {
    let (stop, stopped) = watch::channel(false);
    // Heard from here on: what follows may take the terminal over.
    let signals = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
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
                // Nothing is dropped from here on.
                terminal::put_back();
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
    .with_secrets(secrets)
}
