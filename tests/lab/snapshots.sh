# shellcheck shell=bash
# Snapshots: every host's disk at one moment, so that tests begin from prepared hosts without preparing them again.

snapshot_take() { # NAME
    local kept=$RUN/snapshots/$1 name were_running=()
    [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "snapshot name '$1': letters, digits, dots, dashes, underscores"
    [ -s "$RUN/hosts" ] || die "no lab here: run 'lab up' first"
    for name in $(host_names); do ! host_running "$name" || were_running+=("$name"); done
    on_every_host host_stop
    rm -rf "$kept.part"
    mkdir -p "$kept.part"
    for name in $(host_names); do cp --reflink=auto --sparse=auto "$(disk_of "$name")" "$kept.part/$name.ext4"; done
    rm -rf "$kept"
    mv "$kept.part" "$kept"
    [ ${#were_running[@]} = 0 ] || each host_start "${were_running[@]}"
    say "snapshot $1: $(host_names | xargs)"
}

snapshot_restore() { # NAME
    local kept=$RUN/snapshots/$1 name
    [ -d "$kept" ] || die "no such snapshot: $1"
    for name in $(host_names); do
        [ -f "$kept/$name.ext4" ] || die "snapshot $1 is older than host $name; nothing was changed"
    done
    on_every_host host_kill
    rm -f "$RUN/faults"
    faults_render
    for name in $(host_names); do cp --reflink=auto --sparse=auto "$kept/$name.ext4" "$(disk_of "$name")"; done
    on_every_host host_start
    say "restore $1: $(host_names | xargs)"
}

on_every_host() { # FUNCTION
    local names
    mapfile -t names < <(host_names)
    each "$1" "${names[@]}"
}

each() { # FUNCTION NAME...: all at once, failing when one does
    local function=$1 name job jobs=() failed=0
    shift
    for name in "$@"; do
        "$function" "$name" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || failed=1; done
    [ $failed = 0 ] || die "$function failed on a host"
}
