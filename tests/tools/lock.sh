#!/bin/sh
# Rewrite every lock in requirements/ from its .in file: one lock for all platforms and Pythons, hashes included.
#
#   lock.sh [PACKAGE...]    without names: upgrade nothing that the .in files do not ask for
#                           with names (or the word "all"): upgrade these
set -eu

cd "$(dirname "$0")/../.."
home=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
uv_version=0.13.9

tool=${GPUFLEET_CACHE:-${XDG_CACHE_HOME:-$home/.cache}/gpufleet-vllm}/venv/uv-$uv_version
if ! [ -x "$tool/bin/uv" ]; then
    printf '    %s\n' "installing uv $uv_version, which writes the locks, into the cache"
    "${PYTHON:-python3}" -m venv --clear "$tool"
    "$tool/bin/python" -m pip install -qq --disable-pip-version-check "uv==$uv_version"
fi

# uv does not read pip's settings; these are the two a mirror needs.
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
[ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$PIP_CERT}"
export UV_CUSTOM_COMPILE_COMMAND="make lock"

upgrade=
for package in "$@"; do
    if [ "$package" = all ]; then upgrade="$upgrade --upgrade"; else upgrade="$upgrade --upgrade-package $package"; fi
done

cd requirements
# Order matters: test.in and dev.in take controller.txt as their constraint.
for name in controller hub-model hub-model-lab test dev galaxy-importer; do
    flags=
    case $name in hub-model*) flags=--no-deps ;; esac
    # shellcheck disable=SC2086  # both hold words
    "$tool/bin/uv" pip compile --quiet --no-config --universal --generate-hashes --python-version 3.11 \
        --no-emit-index-url $flags $upgrade "$name.in" -o "$name.txt"
    printf '    %s\n' "requirements/$name.txt: $(grep -c '^[A-Za-z0-9]' "$name.txt") packages"
done
