#!/bin/bash
# bench.sh [--dir DIR] [--rounds N] [--busy] [--profile] [--small] [WHAT…]
# bench.sh --clean [--dir DIR]
#
# Builds for release, then measures the log beside its peers in turn, and prints one table (benches/README.md says what each
# figure is). WHAT is one or more of: append rebuild verify replay commands fleet. All of them, unless given. Installs by apt what is missing,
# and says so. Fails when something could not be measured; a target that is missed is told in the table and fails nothing.
#
# --dir DIR   where the stores of 1 M and 10 M events are made, and kept for the next run (target/bench-stores). The file system that
#             it is on is what is measured. --clean removes it.
# --rounds N  how often each side of a pair is measured; 5.
# --busy      others use this machine: threads that append, ours and the peers', get slices of 0.1 ms, and so a core soon after a sync.
# --profile   says besides where the time went (perf).
# --small     leaves the store of 10 M events out, which needs 45 GB.
#
# fleet needs root, for mount namespaces, and the network once: it installs ansible-core by pip into DIR/ansible.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/packages.sh

# sched_setattr(2): the policy as it was, and a slice (sched_runtime) of 0.1 ms, since Linux 6.12. Never real-time priority: a thread of
# sled's that waits in a loop would keep the cores from who it waits for.
short_slices='
import ctypes, os, struct, sys
attr = ctypes.create_string_buffer(struct.pack("IIQiIQQQ", 48, 0, 0, 0, 0, 100000, 0, 0))
if os.uname().machine != "x86_64" or ctypes.CDLL(None, use_errno=True).syscall(314, 0, attr, 0):
    sys.exit("bench.sh: this kernel gives no short slices: %s" % os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
'

usage() { sed -n '2,/^set /{/^#/!d;s/^# \{0,1\}//;p}' scripts/bench.sh >&2; exit 2; }
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
dir=$target_dir/bench-stores rounds=5 with_profile=no with_large=yes clean=no busy=() what=()
while [ $# -gt 0 ]; do
    case $1 in
    --dir) dir=$(realpath -m "${2:?--dir needs a directory}"); shift ;;
    --rounds) rounds=${2:?--rounds needs a number}; shift ;;
    --busy) busy=(python3 -c "$short_slices") ;;
    --profile) with_profile=yes ;;
    --small) with_large=no ;;
    --clean) clean=yes ;;
    append | rebuild | verify | replay | commands | fleet) what+=("$1") ;;
    *) usage ;;
    esac
    shift
done
if [ $clean = yes ]; then
    # Only what is known to be ours: DIR may be a directory that holds other things.
    rm -rf "$dir"/{1M,10M,append,fleet,ansible} "$dir"/{1M,10M}.{json,sqlite,sqlite-*} "$dir"/{results.jsonl,perf.data}
    rmdir --ignore-fail-on-non-empty "$dir" 2>/dev/null || true
    exit
fi
[ ${#what[@]} != 0 ] || what=(append rebuild verify replay commands fleet)

need_packages "the bench" gcc libc6-dev libsqlite3-dev pkg-config sqlite3 eatmydata util-linux
[ ${#busy[@]} = 0 ] || need_packages "--busy" python3-minimal
[ $with_profile = no ] || need_packages "profiles" linux-perf
need_cargo
program=$(scripts/build.sh --profile release --target-dir "$target_dir" | tee /dev/stderr | tail -n 1)/tallybook
# It acts as the program does: with the hash of the agent that is sent.
TALLYBOOK_AGENT=${program%/*}/tallybook-agent cargo build --locked --release --manifest-path benches/Cargo.toml --target-dir "$target_dir"
bench=$target_dir/release/tallybook-bench
mkdir -p "$dir"
results=$dir/results.jsonl
rm -f "$results"
export TALLYBOOK_BENCH_RESULTS=$results

# store NAME EVENTS: made once; a store that was not made to its end is made again. Nobody's data: made without syncs.
store() {
    [ ! -f "$dir/$1.json" ] || return 0
    echo "making a store of $2 events in $dir/$1" >&2
    rm -rf "${dir:?}/$1" "$dir/$1".sqlite*
    eatmydata "$bench" make "$dir/$1" "$2" >/dev/null
}

# measure [PREFIX…] -- ARGUMENT…: one bench, with its profile where that is wanted.
measure() {
    local prefix=()
    while [ "$1" != -- ]; do prefix+=("$1"); shift; done
    shift
    if [ $with_profile = no ]; then
        "${prefix[@]}" "$bench" --dir "$dir" --rounds "$rounds" "$@"
        return
    fi
    perf record -q -F 299 --call-graph dwarf,12288 -o "$dir/perf.data" -- "${prefix[@]}" "$bench" --dir "$dir" --rounds 1 "$@"
    echo "where the time went in: $1 (itself, then with what it calls)"
    perf report -i "$dir/perf.data" --no-children -g none --percent-limit 1 2>/dev/null | grep '%' | grep -v '^#' | head -n 25 || true
    perf report -i "$dir/perf.data" --children -g none --percent-limit 2 2>/dev/null | grep '%' | grep -v -e '^#' -e inlined -e '{{' -e '{closure' | head -n 50 || true
    rm -f "$dir/perf.data"
}

for one in "${what[@]}"; do
    case $one in
    append) measure "${busy[@]}" -- append ;;
    rebuild) store 1M 1000000; measure -- rebuild "$dir/1M" ;;
    verify) store 1M 1000000; measure -- verify "$dir/1M" ;;
    fleet)
        need_packages "the bench of many hosts" openssh-client openssh-server python3 python3-venv util-linux
        [ -x "$dir/ansible/bin/ansible-playbook" ] || {
            rm -rf "${dir:?}/ansible"
            python3 -m venv "$dir/ansible"
            "$dir/ansible/bin/pip" install --quiet ansible-core
        }
        "$dir/ansible/bin/ansible-playbook" --version | sed -n 1p
        measure -- fleet --agent "${program%/*}/tallybook-agent" --ansible "$dir/ansible/bin/ansible-playbook"
        ;;
    replay) store 1M 1000000; measure -- replay "$dir/1M" ;;
    commands)
        stores=(1M:1000000)
        if [ $with_large = yes ]; then
            free_gb=$(df --output=avail -BG "$dir" | tail -n 1 | tr -dc 0-9)
            if [ -f "$dir/10M.json" ] || [ "$free_gb" -ge 45 ]; then
                stores+=(10M:10000000)
            else
                echo "NOT MEASURED: commands on 10 M events, which need 45 GB in $dir; it has $free_gb" >&2
            fi
        fi
        for made in "${stores[@]}"; do
            store "${made%:*}" "${made#*:}"
            "$bench" prepare "$dir/${made%:*}"
            measure -- commands "$dir/${made%:*}" --program "$program"
        done
        ;;
    esac
done

echo
echo "$(nproc) cores, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), Linux $(uname -r), $(findmnt -n -o FSTYPE -T "$dir") on $(findmnt -n -o SOURCE -T "$dir")," \
    "load $(cut -d ' ' -f 1-3 /proc/loadavg), $(date -u +%FT%TZ), $(git rev-parse --short HEAD)$([ -z "$(git status --porcelain)" ] || echo ' and changes')"
[ ${#busy[@]} = 0 ] || echo "appends were measured with short slices (--busy)"
awk -v cores="$(nproc)" '$1 > cores / 2 { print "THIS MACHINE IS BUSY: what the table says of appends can\047t be relied on (benches/README.md)" }' /proc/loadavg
"$bench" table "$results"
