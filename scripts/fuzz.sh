#!/bin/bash
# fuzz.sh [--seconds N] [TARGET...]
#
# Runs fuzz targets (tests/fuzz), all of them unless some are named, each for N seconds (10 unless given), from the committed
# corpus on; its regressions first. The target `selftest` has a bug planted and must find it. Goes on after a failure; says
# where the input is that broke a promise and how to replay it, and fails then. Installs by apt what is missing, and says so.
# The last line is `fuzz: N passed, N failed`.
#
# It needs no cargo-fuzz: it builds with the compiler's own instrumentation, of our crates and of the decoder below them only,
# and shares everything else with the tests. `cargo fuzz run -s none --fuzz-dir tests/fuzz TARGET` builds all of it anew.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/.." || exit 1
. scripts/packages.sh

usage() { sed -n '2,/^set /{/^#/!d;s/^# \{0,1\}//;p}' scripts/fuzz.sh >&2; exit 2; }
seconds=10 targets=()
while [ $# -gt 0 ]; do
    case $1 in
    --seconds)
        [[ ${2:-} =~ ^[0-9]+$ ]] || usage
        seconds=$2
        shift
        ;;
    -*) usage ;;
    *) targets+=("$1") ;;
    esac
    shift
done

# Every binary of tests/fuzz.
mapfile -t known < <(sed -n '/^\[\[bin\]\]/,/^$/s/^name = "\(.*\)"$/\1/p' tests/fuzz/Cargo.toml)
[ ${#targets[@]} != 0 ] || targets=("${known[@]}")
for target in "${targets[@]}"; do
    [[ " ${known[*]} " == *" $target "* ]] || { echo "fuzz.sh: there is no target $target; there are: ${known[*]}" >&2; exit 2; }
done

need_packages "libFuzzer" g++ libc6-dev || exit 1
need_cargo || exit 1
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
# A wrapper is not part of what cargo remembers of a crate: tests/fuzz/Cargo.toml builds these with settings of their own, so
# that they are never taken for those that the tests are built from.
export INSTRUMENTED="rmp rmp-serde tallybook tallybook-agent tallybook-decoders tallybook-events tallybook-replay"
began=$SECONDS
RUSTC_WRAPPER=$PWD/tests/fuzz/instrument cargo build --quiet --locked --target-dir "$target_dir" \
    --manifest-path tests/fuzz/Cargo.toml "${targets[@]/#/--bin=}" || { echo "fuzz: 0 passed, ${#targets[@]} failed"; exit 1; }
echo "fuzz: built in $((SECONDS - began)) s"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

# What a target leaves in memory is named for its process.
clear_memory() { rm -rf /dev/shm/tallybook-decoders-*-"$1"; }

# fuzz TARGET OPTION...: the status of the run; what it said is in $work/said.
fuzz() {
    local target=$1 status=0 pid
    shift
    mkdir -p "tests/fuzz/artifacts/$target" "$work/$target"
    "$target_dir/debug/$target" -rss_limit_mb=2048 -timeout=30 -max_len=8192 -print_final_stats=1 \
        -artifact_prefix="tests/fuzz/artifacts/$target/" "$@" >"$work/said" 2>&1 &
    pid=$!
    wait $pid || status=$?
    clear_memory $pid
    return $status
}

one() {
    local target=$1 corpus=tests/fuzz/corpus/$1 executions input
    local regressions=(tests/fuzz/regressions/"$target"/*)
    if [ -e "${regressions[0]}" ]; then
        fuzz "$target" "${regressions[@]}" || { tail -n 25 "$work/said"; echo "$target: a regression"; return 1; }
    fi
    fuzz "$target" -max_total_time="$seconds" "$work/$target" "$corpus" || {
        tail -n 40 "$work/said"
        input=$(sed -n 's/.*Test unit written to //p' "$work/said" | tail -n 1)
        echo "$target: broke a promise; the input is ${input:-not known}"
        echo "replay it: $target_dir/debug/$target ${input:-INPUT}"
        echo "then put it into tests/fuzz/regressions/$target/, where every test run tries it"
        return 1
    }
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/said")
    echo "$target: $executions executions in $seconds s, $(grep -o 'cov: [0-9]*' "$work/said" | tail -n 1)"
    [ "${executions:-0}" -gt 0 ]
}

planted() {
    if fuzz selftest -max_total_time=120 "$work/selftest"; then
        echo "selftest: the planted bug was not found in 120 s: this fuzzer does not see what the program compares"
        return 1
    fi
    grep -q 'the planted bug was found' "$work/said" || { tail -n 25 "$work/said"; return 1; }
    rm -rf tests/fuzz/artifacts/selftest
    echo "selftest: the planted bug was found"
}

for target in "${targets[@]}"; do
    if if [ "$target" = selftest ]; then planted; else one "$target"; fi; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
done
echo "fuzz: $passed passed, $failed failed"
[ $failed = 0 ]
