# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The collection's tarball: ``tarball.py {build,check,install,galaxy} [--output DIR]``.

build    make it from a clean copy of the source tree
check    list it and fail on anything outside the allow-list, or on anything that must be there and is not
install  install it into an empty place and use what was installed: ansible-doc, the playbooks by their full names
galaxy   run Galaxy's own import check on it
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import yaml
from lanes import cached_environment, search_path
from tree import ROOT, collection_copy, source_files

ALLOWED = re.compile(
    r"""
      (MANIFEST|FILES)\.json
    | README\.md | LICENSE | CHANGELOG\.(md|rst)
    | meta/[\w.-]+\.(yml|txt)
    | plugins/(README\.md|[a-z_]+/\w+\.(py|yml|yaml))
    | roles/\w+/(README\.md|(defaults|files|handlers|meta|tasks|templates|vars)/[\w./-]+)
    | playbooks/(\w+\.yml|(files|group_vars|host_vars|tasks|templates|vars)/[\w./-]+)
    | docs/[\w./-]+\.(md|rst|yml|yaml|txt|svg|png)
    | changelogs/(config\.yaml|changelog\.yaml|fragments/[\w.-]+\.(yml|yaml))
    | inventory/[\w./-]+\.(yml|yaml|ini|md)
    """,
    re.VERBOSE,
)
SHIPPED = ("changelogs/", "docs/", "inventory/", "meta/", "playbooks/", "plugins/", "roles/")
"""Every source file in these directories is in the tarball."""
REQUIRED = ("MANIFEST.json", "FILES.json", "README.md", "LICENSE", "meta/runtime.yml", "changelogs/config.yaml")
LARGEST = 20 * 1024 * 1024
"""Bytes: Galaxy's own limit for a collection."""


def metadata() -> dict[str, object]:
    """The parsed galaxy.yml."""
    loaded = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def tarball_path(output: Path) -> Path:
    """Where ``ansible-galaxy collection build`` puts this version."""
    data = metadata()
    return output / f"{data['namespace']}-{data['name']}-{data['version']}.tar.gz"


def tool(name: str) -> str:
    """A command of the running environment."""
    return str(Path(sys.prefix) / "bin" / name)


def environment(**extra: str) -> dict[str, str]:
    """The caller's environment without Ansible settings of its own, and with the running environment's tools first."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PYTHONPATH"))}
    return {**kept, "PATH": search_path(Path(sys.prefix) / "bin"), "LC_ALL": "C.UTF-8", **extra}


def build(output: Path) -> int:
    """Build from a clean copy: the build would follow .venv's link back to the checkout, round and round."""
    output.mkdir(parents=True, exist_ok=True)
    # The gates after this one must not judge an older tarball.
    tarball_path(output).unlink(missing_ok=True)
    with collection_copy() as tree:
        argv = [tool("ansible-galaxy"), "collection", "build", "--force", "--output-path", str(output.resolve())]
        status = subprocess.run(
            argv, cwd=tree, env=environment(ANSIBLE_CONFIG=str(tree / "ansible.cfg")), check=False
        ).returncode
    if status == 0:
        print(f"{tarball_path(output)}: {tarball_path(output).stat().st_size / 1024:.0f} KiB")
    return status


def problems(names: list[str]) -> list[str]:
    """What is wrong with a tarball that holds these files, one line each."""
    unwanted = [f"unwanted: {name}" for name in names if not ALLOWED.fullmatch(name)]
    missing = [f"missing: {name}" for name in REQUIRED if name not in names]
    return unwanted + missing


def check(output: Path) -> int:
    """Compare the tarball with the allow-list."""
    path = tarball_path(output)
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    found = problems([member.name for member in members if not member.isdir()])
    shipped = {member.name for member in members}
    found += [f"missing: {name}" for name in source_files() if name.startswith(SHIPPED) and name not in shipped]
    found += [f"not a plain file: {member.name}" for member in members if not (member.isfile() or member.isdir())]
    if path.stat().st_size > LARGEST:
        found.append(f"too large: {path.stat().st_size} bytes, at most {LARGEST}")
    for line in found:
        print(line)
    if found:
        print(f"ERROR: {len(found)} problems in {path.name}; do this: fix manifest.directives in galaxy.yml")
        return 1
    print(f"{len(members)} entries, all allowed")
    return 0


def install(output: Path) -> int:
    """Install into an empty place and use it there, away from the checkout."""
    data = metadata()
    fqcn = f"{data['namespace']}.{data['name']}"
    with tempfile.TemporaryDirectory(prefix="gpufleet-install-") as scratch:
        settings = Path(scratch, "ansible.cfg")
        settings.write_text("[defaults]\n", encoding="utf-8")
        env = environment(ANSIBLE_COLLECTIONS_PATH=scratch, ANSIBLE_CONFIG=str(settings))

        def run(*argv: str) -> str:
            print("+", *argv, flush=True)
            done = subprocess.run(
                [tool(argv[0]), *argv[1:]],
                cwd=scratch,
                check=False,
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            if done.returncode:
                print(done.stdout)
                raise SystemExit(done.returncode)
            return done.stdout

        run("ansible-galaxy", "collection", "install", "--offline", str(tarball_path(output).resolve()), "-p", scratch)
        installed = Path(scratch, "ansible_collections", *fqcn.split("."))
        if not installed.is_dir():
            print(f"ERROR: nothing was installed at {installed}")
            return 1
        modules = sorted(path.stem for path in installed.glob("plugins/modules/[a-z]*.py"))
        if modules:
            listed = json.loads(run("ansible-doc", "--list", "--json", fqcn))
            unlisted = [name for name in modules if f"{fqcn}.{name}" not in listed]
            if unlisted:
                print(f"ERROR: ansible-doc does not list {unlisted}, it lists {sorted(listed)}")
                return 1
        # All of a kind in one call: starting Ansible is most of the time.
        playbooks = [f"{fqcn}.{path.stem}" for path in sorted(installed.glob("playbooks/*.yml"))]
        if playbooks:
            run("ansible-playbook", "--syntax-check", "-i", "localhost,", *playbooks)
        roles = sorted(f"{fqcn}.{path.name}" for path in installed.glob("roles/*") if path.is_dir())
        if roles:
            documented = json.loads(run("ansible-doc", "-t", "role", "--json", *roles))
            missing = [name for name in roles if not documented.get(name, {}).get("entry_points")]
            if missing:
                print(f"ERROR: ansible-doc knows nothing of the roles {missing}")
                return 1
        print(f"installed and usable: {len(modules)} modules, {len(playbooks)} playbooks, {len(roles)} roles")
    return 0


def galaxy(output: Path) -> int:
    """Galaxy's import check, in an environment of its own."""
    lock = ROOT / "requirements" / "galaxy-importer.txt"
    try:
        place = cached_environment("galaxy-importer", lock, Path(sys.executable))
    except subprocess.CalledProcessError as error:
        return error.returncode
    with tempfile.TemporaryDirectory(prefix="gpufleet-galaxy-") as scratch:
        tarball = shutil.copy(tarball_path(output), scratch)
        env = environment(PATH=search_path(place))
        done = subprocess.run(
            [str(place / "python"), "-m", "galaxy_importer.main", tarball],
            cwd=scratch,
            check=False,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    print(done.stdout)
    complaints = [line for line in done.stdout.splitlines() if re.match(r"(WARNING|ERROR|CRITICAL):", line)]
    if done.returncode or complaints:
        print(f"ERROR: galaxy-importer exited {done.returncode} with {len(complaints)} warnings or errors:")
        print(*complaints, sep="\n")
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = {"build": build, "check": check, "install": install, "galaxy": galaxy}
    parser.add_argument("action", choices=actions)
    parser.add_argument("--output", type=Path, default=ROOT / "build")
    options = parser.parse_args()
    if options.action != "build" and not tarball_path(options.output).is_file():
        print(f"ERROR: no {tarball_path(options.output)}; do this: make build")
        return 1
    return actions[options.action](options.output)


if __name__ == "__main__":
    sys.exit(main())
