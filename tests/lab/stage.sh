#!/bin/sh
# An inventory script, and what starts and stops a Molecule scenario's lab: stage.py with the packages that it needs.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
prefix=$(python3 -c 'import sys; print(sys.prefix)')
PYTHONPATH=$here:$prefix/collections exec python3 "$here/stage.py" "$@"
