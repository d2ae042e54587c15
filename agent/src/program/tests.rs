//! Programs that are run for the tests: how they end, what is kept of them, and that nothing of them stays.

use super::*;

fn sh(script: &str) -> Program {
    Program::new(["sh", "-c", script])
}

fn is_alive(pid: &str) -> bool {
    // A zombie of ours counts: it would be one that nobody reaped.
    std::path::Path::new("/proc").join(pid.trim()).exists()
}

#[test]
fn streams_exit_and_input_are_kept_apart() {
    let program = sh("cat; echo err >&2; exit 3").stdin("in\n");
    let run = run(&program).unwrap();
    let ended = run.result.unwrap();
    assert_eq!(ended.exit, Some(3));
    assert_eq!(ended.stdout, b"in\n");
    assert_eq!(ended.stderr, b"err\n");
    assert_eq!(run.captured.text.to_string(), "in\nerr\n");
    assert_eq!(run.captured.exit, Some(3));
    assert_eq!(run.captured.command, argv::text(&program.argv));
}

#[test]
fn the_environment_is_clean() {
    let run = run(&Program::new(["env"]).env("ADDED", "1")).unwrap();
    let text = String::from_utf8(run.result.unwrap().stdout).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let path = format!("PATH={PATH}");
    assert_eq!(lines, ["ADDED=1", "HOME=/root", "LC_ALL=C.UTF-8", &path]);
}

#[test]
fn much_input_and_output_at_once_do_not_block_each_other() {
    let input = vec![b'x'; 3_000_000];
    let run = run(&Program::new(["cat"]).stdin(input.clone())).unwrap();
    assert_eq!(run.result.unwrap().stdout, input);
    let kept = (RECORD_HEAD + RECORD_TAIL) as u64;
    assert_eq!(run.captured.dropped_bytes, 3_000_000 - kept);
    assert!(run.captured.text.0.len() < RECORD_HEAD + RECORD_TAIL + 100);
}

#[test]
fn what_its_watch_answers_is_told_as_it_comes() {
    let program = sh("echo I: one; echo other; printf 'I: t'; printf 'wo\\nI: half' >&2")
        .watch(|line| line.strip_prefix("I: ").map(str::to_owned));
    let mut told = Vec::new();
    let run = run_telling(&program, &[], &Secrets::default(), &mut |what| {
        told.push(what.to_owned())
    })
    .unwrap();
    assert_eq!(run.result.unwrap().exit, Some(0));
    assert_eq!(told.first().unwrap(), "one");
    assert_eq!(told.len(), 2, "{told:?}");
}

#[test]
fn input_that_is_not_read_is_no_failure() {
    let run = run(&Program::new(["true"]).stdin(vec![0; 1_000_000])).unwrap();
    assert_eq!(run.result.unwrap().exit, Some(0));
}

#[test]
fn one_that_takes_too_long_is_stopped_with_all_it_started() {
    let begun = Instant::now();
    let program = sh("sleep 1000 & echo $! $$; wait").timeout(Duration::from_millis(300));
    let run = run(&program).unwrap();
    assert!(begun.elapsed() < KILL_AFTER, "the polite signal is enough");
    let failure = run.result.unwrap_err();
    assert_eq!(failure.class, FailureClass::Timeout);
    let text = run.captured.text.to_string();
    let pids: Vec<&str> = text.split_whitespace().collect();
    assert!(!is_alive(pids[1]), "reaped");
    let gone = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pids[0]));
        // Its parent is gone; where nobody reaps for init, it stays a zombie.
        stat.map_or(true, |stat| stat.contains(") Z "))
    });
    assert!(gone, "{text}");
}

#[test]
fn a_daemon_left_behind_is_not_waited_for() {
    let begun = Instant::now();
    let run = run(&sh("setsid sleep 5 & echo started")).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert_eq!(run.result.unwrap().stdout, b"started\n");
}

#[test]
fn a_program_that_is_missing_is_named() {
    let error = run(&Program::new(["no-such-program-here"])).unwrap_err();
    let failure = StepFailure::from(error);
    assert_eq!(failure.class, FailureClass::Missing);
    assert!(
        failure.message.contains("no-such-program-here"),
        "{}",
        failure.message
    );
    assert!(matches!(
        run(&Program::new(Vec::<String>::new())),
        Err(Error::Nameless)
    ));
}

#[test]
fn what_is_recorded_is_scrubbed_and_what_the_step_reads_is_not() {
    let run = run(&Program::new(["echo", "password=hunter2"])).unwrap();
    assert_eq!(run.result.unwrap().stdout, b"password=hunter2\n");
    assert_eq!(run.captured.command, "echo password=[removed]");
    assert_eq!(run.captured.text.to_string(), "password=[removed]\n");
}

#[test]
fn nothing_stays_open() {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    run(&sh("echo x")).unwrap();
    let before = count();
    for _ in 0..5 {
        run(&sh("cat; echo x").stdin("y")).unwrap();
    }
    assert_eq!(count(), before);
}
