# shellcheck shell=bash
# Sourced by every case, first thing: how a case begins and ends, and what must be true. What a case does on the hosts is in
# operator.sh.
#
# A case ends with `ok NAME` when it comes to its end, and `not ok NAME: why` when a command fails or `fail` is called. It
# begins with `start_from STATE`, so that it depends on no other case:
#
#   plain       hosts as the lab makes them, and nothing of tallybook
#   installed   both programs and an inventory on ctl
#   prepared    every host installed and prepared
#   templated   container lxcmakinastates on ctl, and from it generation 1 of the template makinastates there
#
# A state is made when it is first wanted, from the one before, and kept as a snapshot of the lab.
set -euEo pipefail
shopt -s inherit_errexit

LAB_HOME=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
CASE=$(basename "$0")
export LAB_DIR=${LAB_DIR:-/var/tmp/tallybook-tests} LAB_BRIDGE=${LAB_BRIDGE:-labt} LAB_NET=${LAB_NET:-10.97.0}
WORK=$(mktemp -d) # the case's own, gone with it
# shellcheck source=tests/lab/operator.sh
. "$LAB_HOME/operator.sh"

# --- ending -----------------------------------------------------------------------------------------------------------

CASE_WHY=
case_failed_at() { CASE_WHY=${CASE_WHY:-"line $1 of ${2##*/}: $3"}; }
case_end() {
    local status=$? jobs
    trap - EXIT ERR
    set +e
    mapfile -t jobs < <(jobs -p)
    [ ${#jobs[@]} = 0 ] || kill "${jobs[@]}" 2>/dev/null
    if [ $status != 0 ]; then
        echo "--- the log's end, and its operations, for whoever mends this"
        timeout 20 "$LAB_HOME/lab" attach ctl sh -c 'export TALLYBOOK_INVENTORY=/root/cloud.toml; tallybook log | tail -n 25; tallybook op list' </dev/null 2>&1
        echo "not ok $CASE: ${CASE_WHY:-status $status}"
    else
        echo "ok $CASE"
    fi
    rm -rf "$WORK"
    exit $status
}
trap case_end EXIT
trap 'case_failed_at "$LINENO" "${BASH_SOURCE[0]}" "$BASH_COMMAND"' ERR
trap 'exit 143' TERM INT HUP

# fail WHY...: ends the case.
fail() {
    CASE_WHY=$*
    exit 1
}

# --- where a case begins ----------------------------------------------------------------------------------------------

start_from() { # STATE
    if "$LAB_HOME/lab" snapshots | grep -qxF -- "$1"; then
        "$LAB_HOME/lab" restore "$1"
        return
    fi
    case $1 in
    plain) ;;
    installed)
        start_from plain
        install_tallybook
        write_inventory
        ctl tallybook cloud check ;;
    prepared)
        start_from installed
        ctl tallybook host install ctl cn1 cn2
        ctl tallybook host prepare ctl cn1 cn2 ;;
    templated)
        start_from prepared
        ctl tallybook container create lxcmakinastates --on ctl
        ctl tallybook template snapshot makinastates --from lxcmakinastates ;;
    *) fail "no case can start from '$1'" ;;
    esac
    "$LAB_HOME/lab" snapshot "$1"
}

# --- what must be true ------------------------------------------------------------------------------------------------

# expect_exit CODE COMMAND...: what it prints, both streams, is in $SAID.
expect_exit() {
    local wanted=$1 status=0
    shift
    "$@" >"$WORK/said" 2>&1 || status=$?
    SAID=$(cat "$WORK/said")
    printf '%s\n' "$SAID"
    [ $status = "$wanted" ] || fail "'$*' ended with $status, not $wanted"
}

# expect_said TEXT: in what the last expect_exit caught.
expect_said() { [[ $SAID == *"$1"* ]] || fail "'$1' was not said"; }

# within SECONDS COMMAND...: until it succeeds.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || fail "not so in time: $*"
        sleep 0.2
    done
}

# --- a command that goes on while the case looks ------------------------------------------------------------------------

# in_background NAME ARGUMENT...: tallybook on ctl; what it says, and at last `exit CODE`, is in /root/NAME.
# shellcheck disable=SC2016 # expanded on the controller
in_background() {
    local name=$1
    shift
    ctl rm -f "$name" "$name.pid"
    ctl bash -c 'name=$1; shift
        set -m
        (trap - INT; exec tallybook "$@") >"$name" 2>&1 &
        echo $! >"$name.pid"; status=0; wait $! || status=$?; echo "exit $status" >>"$name"' - "$name" "$@" &
}
says() { ctl grep -qF -- "$2" "$1"; } # NAME TEXT
ended() { # NAME CODE
    within 180 says "$1" "exit "
    ctl cat "$1"
    says "$1" "exit $2" || fail "$1 did not end with $2"
}
interrupt() { ctl sh -c "kill -INT \$(cat $1.pid)"; }

# --- judging by the observer ------------------------------------------------------------------------------------------

# observe NAME HOST...: what is really on the hosts, by the observer; kept under NAME.
observe() {
    local name=$1
    shift
    "$LAB_HOME/observer" observe "$WORK/$name" "$@"
}

# expect_same NAME NAME [COMPARE-ARGUMENT...]: two observations agree, but for what may differ.
expect_same() {
    local before=$1 after=$2
    shift 2
    "$LAB_HOME/observer" compare "$WORK/$before" "$WORK/$after" "$@" || fail "the hosts are not as they were in '$before'"
}
