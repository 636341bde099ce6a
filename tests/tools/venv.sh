#!/bin/sh
# Make a virtual environment hold what one lock names, or do nothing when it already does.
#
#   venv.sh DIR LOCK [LABEL]      PYTHON=... chooses the interpreter, PIP_* variables reach pip
#
# The lock's copy inside DIR is the stamp: it is written last, so an interrupted run is taken up by the next.
set -eu

dir=$1
lock=$2
label=${3:-$1}
name=$(basename "$lock" .txt)
stamp=$dir/.installed-$name

say() { printf '%s\n' "    $*"; }

fail() { # seen, expected, remedy
    printf '\nERROR: %s\n  expected: %s\n  do this:  %s\n' "$1" "$2" "$3" >&2
    exit 1
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || fail "PYTHON=$PYTHON does not run as Python 3.11 or newer" \
            "an interpreter that ansible-core 2.19 or 2.21 supports" "set PYTHON to one, or leave it unset"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        if new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    seen=$(python3 --version 2>/dev/null) || seen="no python3"
    fail "found $seen on PATH" "Python 3.11 or newer" \
        "on Debian 12+, Ubuntu 24.04+: apt-get install python3 python3-venv; elsewhere: PYTHON=/path/to/python3.11 make ..."
}

# Debian splits ensurepip out of Python: without it `-m venv` fails half-way.
require_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null && return
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    package=python$version-venv
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "installing $package with apt-get: Debian keeps Python's venv module in a package of its own"
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install "$package"; } >/dev/null || true
        "$1" -c 'import ensurepip, venv' 2>/dev/null && return
    fi
    fail "$1 cannot make virtual environments (no ensurepip)" "the venv module with ensurepip" \
        "as root: apt-get install $package (other systems: the package that holds Python's ensurepip)"
}

# A virtual environment that was copied or moved runs its old place's packages: its scripts hold absolute paths.
usable() {
    if [ -n "${PYTHON:-}" ]; then
        wanted=$("$PYTHON" -V 2>/dev/null | cut -d. -f1,2) || return 1
        [ "$("$dir/bin/python" -V 2>/dev/null | cut -d. -f1,2)" = "$wanted" ] || return 1
    fi
    [ -x "$dir/bin/python" ] && new_enough "$dir/bin/python" && "$dir/bin/python" -m pip --version >/dev/null 2>&1 &&
        grep -qF "$dir/bin/python" "$dir/bin/pip" 2>/dev/null
}

# One small package, without retries: says within seconds that the network or the index setting is wrong.
require_index() {
    probe=$(sed -n 's/^\(packaging==[^ ;]*\).*/\1/p' "$lock" | head -n 1)
    [ -n "$probe" ] || return 0
    scratch=$(mktemp -d)
    status=0
    "$dir/bin/python" -m pip download -q --no-deps --no-cache-dir --retries 1 --timeout 15 \
        --disable-pip-version-check -d "$scratch" "$probe" >"$scratch/log" 2>&1 || status=$?
    # The first retry names the cause; pip's last line only says that nothing was found.
    seen=$(grep -E '^ERROR|connection broken by' "$scratch/log" | head -n 1 | sed 's/.*connection broken by //')
    [ -n "$seen" ] || seen="pip exited $status"
    rm -rf "$scratch"
    [ "$status" -eq 0 ] || fail "pip cannot fetch $probe: $seen" "a package index that pip can reach" \
        "check the network; behind a proxy or a mirror set HTTPS_PROXY, PIP_INDEX_URL and PIP_CERT, or pip's own configuration"
}

if cmp -s "$lock" "$stamp" && [ -x "$dir/bin/python" ] && usable; then
    exit 0
fi

if usable; then python=; else python=$(find_python); fi

parent=$(dirname "$dir")
mkdir -p "$parent"
free_mb=$(df -Pk "$parent" | awk 'NR == 2 { print int($4 / 1024) }')
need_mb=${VENV_NEED_MB:-600}
[ "$free_mb" -ge "$need_mb" ] || fail "$free_mb MB free on the disk of $parent" "$need_mb MB for $label" "free some space"

if [ -n "$python" ]; then
    require_venv "$python"
    say "making $label with $("$python" --version)"
    "$python" -m venv --clear "$dir"
fi
require_index
say "installing $(grep -c '^[A-Za-z0-9]' "$lock") pinned packages of $name.txt into $label (hashes checked)"
rm -f "$stamp"
# shellcheck disable=SC2086  # words
"$dir/bin/python" -m pip install -qq --disable-pip-version-check --no-input --require-hashes ${VENV_PIP_ARGS:-} -r "$lock"
cp "$lock" "$stamp.new"
mv "$stamp.new" "$stamp"
