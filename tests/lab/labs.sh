# shellcheck shell=bash
# Sourced by what raises more than one lab: labs go on side by side, for a case mostly waits for its hosts.

# use_lab N: from here on, the N-th of the labs; the first is the one that LAB_DIR, LAB_BRIDGE and LAB_NET name when this is
# sourced.
FIRST_LAB=("${LAB_DIR:-/var/tmp/tallybook-tests}" "${LAB_BRIDGE:-labt}" "${LAB_NET:-10.97.0}")
use_lab() {
    export LAB_DIR=${FIRST_LAB[0]} LAB_BRIDGE=${FIRST_LAB[1]} LAB_NET=${FIRST_LAB[2]}
    [ "$1" != 1 ] || return 0
    LAB_DIR=$LAB_DIR-$1 LAB_BRIDGE=$LAB_BRIDGE$1 LAB_NET=${LAB_NET%.*}.$(((10#${LAB_NET##*.} + $1 - 1) % 256))
}
