# shellcheck shell=bash
# Sourced by cases behind lib.sh: has tallybook killed, takes up what is left, and holds the hosts against how they were. The
# observer, which knows nothing of tallybook, is the judge.
# Wants KILLS (a count), COUNT (an associative array: kills of each class), DRAWS (the container whose machine id each run draws
# anew) and VARY (a command that is given two observations of a host and puts one word for what is never the same, or `:`).

say() { printf '\n--- %s\n' "$*"; }

# --- operations -------------------------------------------------------------------------------------------------------

newest() { ctl tallybook op list --format json | jq -r 'max_by(.first.seq).id'; }
unfinished() { ctl tallybook op list --unfinished --format json; }
steps_of() { ctl tallybook op show "$1" --format json | jq '.steps | length'; }

# Nothing is under way, and the log is whole.
at_rest() {
    [ "$(unfinished | jq length)" = 0 ] || fail "an operation is unfinished"
    ctl tallybook verify >"$WORK/verify" 2>&1 || { cat "$WORK/verify"; fail "verify found something"; }
}

# killed CLASS WHAT: counts a kill that happened.
killed() {
    KILLS=$((KILLS + 1))
    COUNT[$1]=$((${COUNT[$1]:-0} + 1))
    echo "kill $KILLS, $1: $2"
}

# crash CLASS MOMENT ARGUMENT...: runs tallybook and has it killed at the moment.
crash() {
    local class=$1 moment=$2
    shift 2
    say "tallybook $* is killed at $moment"
    expect_exit 137 ctl TALLYBOOK_CRASH_AT="$moment" tallybook "$@"
    expect_said "crash: SIGKILL at $moment"
    killed "$class" "$moment of $*"
}

# strike CLASS LINE DELAY-MS ARGUMENT...: runs tallybook and kills it from outside, DELAY-MS after it said LINE (at once when
# LINE is empty). Fails when tallybook was done before.
strike() {
    local class=$1 line=$2 delay=$3
    shift 3
    say "tallybook $* is killed from outside $delay ms after '${line:-its start}'"
    # shellcheck disable=SC2016 # expanded on the controller
    expect_exit 137 ctl sh -c '
        line=$1; delay=$2; shift 2
        tallybook "$@" >/run/struck 2>&1 &
        tries=0
        until [ -z "$line" ] || grep -qF -- "$line" /run/struck; do
            tries=$((tries + 1)); [ $tries -lt 600 ] || break
            sleep 0.02
        done
        sleep "$delay"; kill -9 $!; wait $!; status=$?
        cat /run/struck; rm -f /run/struck; exit $status' strike "$line" "$(printf '%d.%03d' $((delay / 1000)) $((delay % 1000)))" "$@"
    killed "$class" "$delay ms after '${line:-its start}' of $*"
}

# Takes up what the kill left, which `op list` must say; its id is in RESUMED. A second time there is nothing to take up.
resume() {
    unfinished >"$WORK/unfinished"
    jq -r '.[] | "unfinished: \(.short) \(.status): \(.intent)"' "$WORK/unfinished"
    # What is being rolled back is finished by the rollback.
    RESUMED=$(jq -r '.[] | select(.status != "rolling_back") | .id' "$WORK/unfinished")
    [ "$(wc -w <<<"$RESUMED")" = 1 ] || fail "not one operation to resume: $RESUMED"
    expect_exit 0 ctl tallybook op resume "$RESUMED"
    at_rest
    local events
    events=$(ctl tallybook op show "$RESUMED" --format json | jq .events)
    expect_exit 1 ctl tallybook op resume "$RESUMED"
    expect_said "there is nothing to resume"
    [ "$(ctl tallybook op show "$RESUMED" --format json | jq .events)" = "$events" ] || fail "the second resume did something"
}

roll_back() { # OPERATION
    expect_exit 0 ctl tallybook op rollback "$1"
    at_rest
}

# --- judging ----------------------------------------------------------------------------------------------------------

# What each run draws anew, as the observation SIDE shows it: the operation's id and the container's machine id.
drawn_by() { # SIDE HOST
    local machine
    machine=$(sed -n 's/^.*\/'"$DRAWS"'\/identity: | .*"machine_id":"\([0-9a-f]*\)".*/\1/p' "$WORK/$1/$2/container-configs")
    echo "$(cat "$WORK/$1.operation") ${machine:--}"
}

# look HOST: as it is now, and no other host as it was.
look() {
    rm -rf "$WORK/now"
    observe now "$1"
}

# judge REFERENCE HOST: the host is as in REFERENCE, but for what each run draws anew.
judge() {
    local reference=$1 host=$2 a b a_machine b_machine
    echo "${RESUMED:--}" >"$WORK/now.operation"
    look "$host"
    read -r a a_machine < <(drawn_by "$reference" "$host")
    read -r b b_machine < <(drawn_by now "$host")
    printf 'OPERATION %s %s\nMACHINE %s %s\n' "$a" "$b" "$a_machine" "$b_machine" >"$WORK/ids"
    # What is taken out this time may matter the next time.
    rm -rf "$WORK/reference"
    cp -a "$WORK/$reference" "$WORK/reference"
    "$VARY" "$WORK/reference/$host" "$WORK/now/$host"
    expect_same reference now --ids "$WORK/ids"
    echo "the observer: $host is as in '$reference'"
}

# refer NAME HOST OPERATION: an observation that others are held against.
refer() {
    echo "$3" >"$WORK/$1.operation"
    observe "$1" "$2"
}
