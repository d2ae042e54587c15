//! The memory of a process and all that it started, while it runs: what it shares with others counted in parts (PSS).

use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Failure;

/// The variable by which processes that belong to a run are known, also those that left its session.
pub(super) const MARK: &str = "TALLYBOOK_BENCH_RUN";

/// Waits for a process to end: whether well, and the most memory that those with this mark had, in MiB. Looks at most a twentieth of
/// the time, so as not to be what is measured.
pub(super) fn wait(mut child: Child, mark: &str) -> Result<(bool, f64), Failure> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut most = 0.0_f64;
            let mut next = Instant::now() + Duration::from_millis(200);
            while !ended.load(Ordering::Relaxed) {
                if Instant::now() < next {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
                let began = Instant::now();
                most = most.max(now(mark));
                next = Instant::now() + (began.elapsed() * 20).max(Duration::from_millis(200));
            }
            most
        });
        let status = child.wait();
        ended.store(true, Ordering::Relaxed);
        let most = looker.join().map_err(|_| "memory could not be looked at")?;
        Ok((status?.success(), most))
    })
}

fn now(mark: &str) -> f64 {
    let marked = format!("{MARK}={mark}");
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return 0.0;
    };
    let mut kibibytes = 0.0;
    for process in processes.flatten() {
        let path = process.path();
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        if !environment
            .split(|byte| *byte == 0)
            .any(|it| it == marked.as_bytes())
        {
            continue;
        }
        let parts = std::fs::read_to_string(path.join("smaps_rollup")).unwrap_or_default();
        let part = parts.lines().find_map(|line| line.strip_prefix("Pss:"));
        let part = part.and_then(|it| it.split_whitespace().next()?.parse::<f64>().ok());
        kibibytes += part.unwrap_or_default();
    }
    kibibytes / 1024.0
}
