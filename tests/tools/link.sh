#!/bin/sh
# Make this checkout known to Ansible as gpufleet.vllm: link.sh VENV (ansible.cfg points at VENV/collections).
set -eu

cd "$(dirname "$0")/../.."
link=$1/collections/ansible_collections/gpufleet/vllm
[ "$(readlink "$link" 2>/dev/null)" = ../../../.. ] && exit 0
mkdir -p "$(dirname "$link")"
rm -f "$link"
# Relative, so that a checkout can be moved.
ln -s ../../../.. "$link"
