#!/bin/bash
# test.sh [--no-lab | --lab-only]
#
# Everything there is to check: format, lints, documentation, shell scripts, the tests of every crate, a short run of every fuzz
# target (tests/fuzz), then the cases on real hosts, in labs (tests/lab). Goes on after a failure so that all of them are told;
# fails when anything did. Installs by apt what is missing, and says so. The labs are taken down at every exit. The last line is
# `N passed, N failed`: the tests that ran, and one for each other check.
#
# --no-lab leaves the lab out, for a quick look; refused where CI=true. --lab-only is the lab alone.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.." || exit 1
. scripts/packages.sh
. tests/lab/labs.sh

usage() { sed -n '2,/^set /{/^#/!d;s/^# \{0,1\}//;p}' scripts/test.sh >&2; exit 2; }
with_crates=yes with_lab=yes
case $#:${1:-} in
0:) ;;
1:--no-lab) with_lab=no ;;
1:--lab-only) with_crates=no ;;
*) usage ;;
esac
if [ $with_lab = no ] && [ "${CI:-}" = true ]; then
    echo "test.sh: CI=true: the lab may not be left out" >&2
    exit 2
fi

LABS=2 # side by side
use_lab 1
export CARGO_TERM_COLOR=never NEXTEST_COLOR=never NEXTEST_SHOW_PROGRESS=none
passed=0 failed=0 failures=() lab_raised=no
work=$(mktemp -d)
memory=$(mktemp -d)
chmod 1777 "$memory" # as /tmp: tests have other users look into it

finish() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP # half of this would be worse than waiting for it
    [ $lab_raised = no ] || lab_down || status=1
    ! mountpoint -q "$memory" || umount "$memory" || umount --lazy "$memory"
    rm -rf "$work" "$memory"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# What a lab test left running must not outlive its lab: `down` says what is left, and fails then.
lab_down() {
    local lab left=0
    lab_raised=no
    for ((lab = 1; lab <= LABS; lab++)); do
        use_lab $lab
        tests/lab/lab down || left=1
    done
    use_lab 1
    return $left
}

count() { # PASSED FAILED WHAT
    passed=$((passed + $1)) failed=$((failed + $2))
    [ "$2" = 0 ] || failures+=("$3")
}

# check WHAT COMMAND...: one check.
check() {
    local what=$1
    shift
    echo "== $what"
    if "$@"; then count 1 0 "$what"; else count 0 1 "$what"; fi
}

# tests WHAT COUNTER COMMAND...: a runner, whose own figures are found by COUNTER in what it prints ("passed failed"). One that
# fails without a failed test, or runs none at all, is a failure too.
tests() {
    local what=$1 counter=$2 status=0 ran
    shift 2
    echo "== $what"
    "$@" 2>&1 | tee "$work/said" || status=1
    read -r -a ran < <("$counter" "$work/said")
    if [ $status != 0 ] && [ "${ran[1]}" = 0 ]; then ran[1]=1; fi
    if [ $status = 0 ] && [ "${ran[0]}" = 0 ]; then ran[1]=1; fi
    count "${ran[0]}" "${ran[1]}" "$what"
}

of_nextest() { # "     Summary [   1.2s] 9 tests run: 7 passed (1 slow), 1 failed, 1 timed out, 3 skipped"
    awk '/^ *Summary \[/ {
        for (i = 1; i < NF; i++) {
            if ($(i + 1) ~ /^tests?$/ && $(i + 2) ~ /^run/) run = $i
            if ($(i + 1) ~ /^passed/) passed = $i
        }
    } END { split(run, parts, "/"); print passed + 0, parts[1] - passed }' "$1"
}
of_cargo() { # "test result: ok. 12 passed; 0 failed; 1 ignored; …", once a binary
    awk '/^test result:/ { for (i = 1; i < NF; i++) { if ($(i + 1) == "passed;") p += $i; if ($(i + 1) == "failed;") f += $i } } END { print p + 0, f + 0 }' "$1"
}
of_fuzz() { awk '/^fuzz: [0-9]+ passed/ { p = $2; f = $4 } END { print p + 0, f + 0 }' "$1"; }
of_cases() { awk '/^cases: / { p = $2; f = $4 } END { print p + 0, f + 0 }' "$1"; }

shell_scripts() { git ls-files -z | xargs -0 awk 'FNR == 1 && /^#!.*sh$|^# shellcheck shell=/ { print FILENAME } { nextfile }'; }
check_shell() { shell_scripts | xargs shellcheck -x -P .:SCRIPTDIR; }
# The tests sync many thousands of small files, and none of them is about this machine's disk. They need attributes of the kind
# that a file system in memory has since Linux 6.6.
mount_memory() {
    [ "$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)" -ge 8 ] || return 1
    mount -t tmpfs -o size=4g,mode=1777 tallybook-tests "$memory" || return 1
    touch "$memory/probe"
    setfattr -n user.probe -v 1 "$memory/probe" 2>/dev/null || { umount "$memory"; return 1; }
}
check_docs() { RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet; }

test_crates() {
    need_cargo || return 1
    need_packages "the linker" gcc libc6-dev || return 1
    # Trees with everything a tree can hold, a full disk, a real sshd; these tests need root.
    need_packages "the tests" openssh-server openssh-client attr acl libcap2-bin e2fsprogs mount util-linux python3-minimal shellcheck strace git || return 1
    need_component fmt rustfmt || return 1
    need_component clippy clippy || return 1
    [ "$(id -u)" = 0 ] || { echo "the tests of the crates need root: they mount small disks and make devices" >&2; return 1; }

    check "format" cargo fmt --all --check
    check "lints" cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
    check "documentation" check_docs
    check "shell scripts" check_shell
    mount_memory || echo "no file system in memory, or too little of it: the tests take the disk, and longer"
    local -x TMPDIR=$memory
    if cargo nextest --version >/dev/null 2>&1; then
        tests "tests" of_nextest cargo nextest run --locked --workspace --no-fail-fast --status-level fail --final-status-level slow
    else
        tests "tests" of_cargo cargo test --locked --workspace --all-targets --no-fail-fast
    fi
    # Examples in the documentation: none is no failure.
    echo "== examples in the documentation"
    if cargo test --locked --workspace --doc --no-fail-fast >"$work/said" 2>&1; then
        read -r -a ran < <(of_cargo "$work/said")
        count "${ran[0]}" 0 ""
    else
        cat "$work/said"
        count 0 1 "examples in the documentation"
    fi
    tests "fuzz targets" of_fuzz scripts/fuzz.sh --seconds 8
    grep -rn --include='*.rs' '#\[ignore' . --exclude-dir=target | sed 's/^\.\//not run, but by hand: /'
    return 0
}

test_lab() {
    need_packages "the lab" openssh-client jq || return 1
    tests/lab/lab deps || return 1
    # In a pipe would lose the status, and the path is the last line of many.
    scripts/build.sh --agent twice || return 1
    scripts/build.sh --agent held || return 1
    scripts/build.sh | tee "$work/built" || return 1
    TALLYBOOK_BIN=$(tail -n 1 "$work/built")
    export TALLYBOOK_BIN
    tests/lab/lab check || return 1
    lab_raised=yes
    tests "lab" of_cases tests/lab/run-cases --labs $LABS
    lab_down
}

began=$SECONDS
if [ $with_crates = yes ]; then test_crates || count 0 1 "what the tests need"; fi
if [ $with_lab = yes ]; then test_lab || count 0 1 "the lab could not be raised, or not be removed"; fi

echo
[ $with_crates = yes ] || echo "NOT RUN, because of --lab-only: format, lints, documentation, shell scripts, the tests of the crates, the fuzz targets"
[ $with_lab = yes ] || echo "NOT RUN, because of --no-lab: the lab, that is everything on real hosts"
for failure in "${failures[@]}"; do echo "failed: $failure"; done
echo "in $(((SECONDS - began) / 60)) min $(((SECONDS - began) % 60)) s"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
