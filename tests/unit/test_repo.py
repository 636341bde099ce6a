# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What must hold for the repository as a whole, so that a new module, role or lock cannot forget its other half."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "tools"))

from tree import source_files  # noqa: E402

SOURCES = source_files(ROOT)
MODULES = sorted((ROOT / "plugins" / "modules").glob("*.py"))
HOST_CODE = [*MODULES, *sorted((ROOT / "plugins" / "module_utils").glob("*.py"))]
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
ROLES = sorted(path for path in (ROOT / "roles").glob("*") if (path / "tasks").is_dir())
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def string_constants(path: Path) -> dict[str, str]:
    """The module-level string assignments of a Python file, as DOCUMENTATION, EXAMPLES and RETURN are."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def keys_of(value: Any) -> set[str]:
    """Every mapping key at any depth."""
    if isinstance(value, dict):
        return {str(key) for key in value}.union(*map(keys_of, value.values()))
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    return set()


# ---- metadata


def test_galaxy_metadata_says_who_and_under_which_licence() -> None:
    galaxy = load_yaml(ROOT / "galaxy.yml")
    assert (galaxy["namespace"], galaxy["name"]) == ("gpufleet", "vllm")
    assert galaxy["license"] == ["GPL-3.0-or-later"]
    assert galaxy["authors"] == ["gpufleet.vllm contributors"]
    assert "build_ignore" not in galaxy, "the tarball's content is an allow-list: manifest.directives"
    assert (ROOT / galaxy["readme"]).is_file()
    assert "Version 3, 29 June 2007" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_action_group_names_every_module() -> None:
    runtime = load_yaml(ROOT / "meta" / "runtime.yml")
    group = runtime["action_groups"]["vllm"]
    assert group == sorted(module.stem for module in MODULES), "meta/runtime.yml: action_groups.vllm, sorted"


# ---- plugins


@pytest.mark.parametrize("path", PLUGINS, ids=name_of)
def test_plugin_states_its_licence(path: Path) -> None:
    head = path.read_text(encoding="utf-8")[:600]
    assert "# SPDX-License-Identifier: GPL-3.0-or-later" in head
    assert "# Copyright: gpufleet.vllm contributors" in head


@pytest.mark.parametrize("path", sorted((ROOT / "plugins" / "module_utils").glob("*.py")), ids=name_of)
def test_module_util_is_private_and_says_so(path: Path) -> None:
    assert path.name.startswith("_")
    assert "private" in path.read_text(encoding="utf-8")[:800].lower()


@pytest.mark.parametrize("path", HOST_CODE, ids=name_of)
def test_host_code_is_python_3_9(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 9))
    assert "from __future__ import annotations" in source


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in PLUGINS
        if path.parent.name in {"modules", "module_utils", "action", "filter", "lookup", "callback"}
    ],
    ids=name_of,
)
def test_plugin_has_unit_tests(path: Path) -> None:
    tests = ROOT / "tests" / "unit" / "plugins" / path.parent.name
    own = tests / f"test_{path.stem}.py"
    if path.parent.name == "modules" and "def main" not in path.read_text(encoding="utf-8"):
        # The documentation of an action plugin, which is tested where it works.
        own = tests.parent / "action" / own.name
    if path.parent.name == "module_utils" and not own.is_file():
        # A small util may be tested with its neighbour.
        assert any(re.search(rf"\b{path.stem}\b", file.read_text(encoding="utf-8")) for file in tests.glob("test_*.py"))
        return
    assert own.is_file(), f"expected {name_of(own)}"
    assert re.search(r"^\s*def test_", own.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_documents_and_shows_every_option(path: Path) -> None:
    texts = string_constants(path)
    documentation = yaml.safe_load(texts["DOCUMENTATION"])
    assert documentation["module"] == path.stem
    author = "gpufleet.vllm contributors (@gpufleet)"
    assert documentation["author"] in (author, [author])
    assert documentation["version_added"]
    assert yaml.safe_load(texts["RETURN"]) is not None
    examples = yaml.safe_load(texts["EXAMPLES"])
    assert f"gpufleet.vllm.{path.stem}" in keys_of(examples), "EXAMPLES use the full name"
    unshown = set(documentation.get("options", {})) - keys_of(examples)
    assert not unshown, f"no example uses {sorted(unshown)}"


# ---- roles


@pytest.mark.parametrize("role", ROLES, ids=name_of)
def test_role_argument_specs_equal_defaults(role: Path) -> None:
    options = load_yaml(role / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {})
    path = role / "defaults" / "main.yml"
    defaults = load_yaml(path) or {} if path.is_file() else {}
    optional = {key: option.get("default") for key, option in options.items() if not option.get("required")}
    assert optional == defaults
    required = {key for key, option in options.items() if option.get("required")}
    assert not required & set(defaults), "a required option has no default"


@pytest.mark.parametrize("role", ROLES, ids=name_of)
def test_role_variables_carry_its_name(role: Path) -> None:
    options = load_yaml(role / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {})
    strangers = [key for key in options if not key.startswith(f"{role.name}_") and key != role.name]
    assert not strangers


@pytest.mark.parametrize("role", ROLES, ids=name_of)
def test_role_readme_names_every_variable(role: Path) -> None:
    options = load_yaml(role / "meta" / "argument_specs.yml")["argument_specs"]["main"].get("options", {})
    readme = (role / "README.md").read_text(encoding="utf-8")
    assert [key for key in options if key not in readme] == []


@pytest.mark.parametrize("path", [*ROLES, *sorted((ROOT / "playbooks").glob("*.yml"))], ids=name_of)
def test_name_is_callable_by_full_name(path: Path) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", path.stem), "Ansible finds no playbook or role with a dash by its full name"


# ---- locks


@pytest.mark.parametrize("path", LOCKS, ids=name_of)
def test_lock_pins_everything_with_hashes_and_no_place(path: Path) -> None:
    assert path.with_suffix(".in").is_file()
    entries = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    for entry in (line for line in entries if line and not line.lstrip().startswith("#")):
        assert re.match(r"[A-Za-z0-9._\[\]-]+==[^ ]+ .*--hash=sha256:[0-9a-f]{64}", entry), entry[:100]
        assert "://" not in entry


def pins(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ;]+)", path.read_text(encoding="utf-8"), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


@pytest.mark.parametrize("name", ["controller", "test"])
def test_development_lock_holds_the_other_locks(name: str) -> None:
    part, whole = (pins(ROOT / "requirements" / f"{lock}.txt") for lock in (name, "dev"))
    differing = {package: versions for package, versions in part.items() if whole.get(package) != versions}
    assert not differing, "run make lock"


# ---- every file


# In pieces, so that this file does not find itself.
FOREIGN = re.compile(
    "|".join(
        re.escape(first + second)
        for first, second in [
            ("/work", "/main"),
            ("/work", "/shared"),
            ("/root", "/.pyenv"),
            ("/opt", "/pypi"),
            ("/opt", "/wheels"),
            ("pypi", ".org"),
            ("pythonhosted", ".org"),
            ("deb.debian", ".org"),
            ("security.debian", ".org"),
            ("npmjs", ".org"),
        ]
    )
)


def test_no_file_names_a_machine_or_a_package_registry() -> None:
    found = []
    for name in SOURCES:
        path = ROOT / name
        if path.is_symlink() or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [f"{name}: {match.group()}" for match in FOREIGN.finditer(text)]
    assert found == []


def test_no_large_file() -> None:
    large = [name for name in SOURCES if (ROOT / name).is_file() and (ROOT / name).stat().st_size > 1_000_000]
    assert large == []
