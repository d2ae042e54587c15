#!/bin/bash
# build.sh [--profile dev|release] [--target-dir DIR] [--agent twice|held]
#
# Builds the agent, statically linked so that it runs on any host, then tallybook, which records the agent's hash, and puts
# both beside each other in DIR/tallybook-bin (DIR is `target` unless given). Installs by apt what that needs. The last
# line is the directory's path.
#
# --agent builds one for tests (agent/examples), and puts it and its tallybook into DIR/tallybook-bin/twice or …/held: `twice`
# holds each step to its word, `held` waits on both sides of a step's effect.
#
# dev is built soon and shares what it compiles with the tests; release runs faster.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$(readlink -f "$0")")/.."
. scripts/packages.sh

profile=dev target_dir=${CARGO_TARGET_DIR:-target} agent=(--bin tallybook-agent) built=tallybook-agent into=tallybook-bin
usage() { sed -n '2,/^set /{/^#/!d;s/^# \{0,1\}//;p}' scripts/build.sh >&2; exit 2; }
while [ $# -gt 0 ]; do
    case $1:${2:-} in
    --profile:dev | --profile:release) profile=$2 ;;
    --target-dir:?*) target_dir=$2 ;;
    --agent:twice | --agent:held) agent=(--example "tallybook-agent-$2") built=examples/tallybook-agent-$2 into=tallybook-bin/$2 ;;
    *) usage ;;
    esac
    shift 2
done

need_packages "the linker" gcc libc6-dev
need_cargo
target_dir=$(realpath -m "$target_dir")
host=$(rustc -vV | sed -n 's/^host: //p')
case $profile in dev) directory=debug ;; release) directory=release ;; esac

# With --target, what runs on this machine while building is kept apart from what is built: both builds share it, and only the
# agent's own dependencies are compiled twice. A static program must not ask the name service; the agent never does. The dev
# profile doesn't optimise, and an agent hashes and copies whole trees.
agent_options=(--config 'profile.dev.package.tallybook-agent.opt-level=1' --config 'profile.dev.package.tallybook-events.opt-level=1')
RUSTFLAGS="-C target-feature=+crt-static -C strip=symbols" cargo build --locked --profile "$profile" --target "$host" \
    --target-dir "$target_dir" "${agent_options[@]}" --package tallybook-agent "${agent[@]}"
built=$target_dir/$host/$directory/$built
TALLYBOOK_AGENT=$built cargo build --locked --profile "$profile" --target-dir "$target_dir" --package tallybook --bin tallybook

# Copied, not linked: the next build must not reach into what is in use.
bin=$target_dir/$into
mkdir -p "$bin"
put() { # PROGRAM NAME
    cp "$1" "$bin/.$2.new"
    mv -f "$bin/.$2.new" "$bin/$2"
}
put "$built" tallybook-agent
put "$target_dir/$directory/tallybook" tallybook
"$bin/tallybook-agent" --version >/dev/null
"$bin/tallybook" --version >/dev/null
echo "$bin"
