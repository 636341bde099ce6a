# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of vLLM's flags is what the generator makes of vLLM's sources."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "tools"))

import vllm_flags  # noqa: E402

pytest.importorskip("pydantic", reason="vLLM's configuration is made of it, and requirements/dev.txt has it")

# Files of vLLM 0.33.0, cut down to nineteen flags; what these need of torch and others is not there.
RECORDED = ROOT / "tests" / "unit" / "plugins" / "module_utils" / "fixtures" / "vllm" / "sources-0.33.0.txt"


def unpack(directory: Path) -> Path:
    for part in RECORDED.read_text("utf-8").split("==== ")[1:]:
        name, _newline, text = part.partition("\n")
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return directory


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def description(sources: Path) -> dict[str, Any]:
    return vllm_flags.describe(sys.executable, str(sources))


@pytest.fixture(scope="module")
def committed() -> list[vllm_flags.Release]:
    return vllm_flags.parse(vllm_flags.TARGET.read_text("utf-8"))


def test_the_table_is_what_the_generator_makes_of_the_sources(
    description: dict[str, Any], committed: list[vllm_flags.Release]
) -> None:
    release = vllm_flags.condense("0.33.0", description)
    [table] = [one for one in committed if one.version == "0.33.0"]
    assert len(release.flags) == 19
    assert release.flags == {name: table.flags[name] for name in release.flags}
    assert release.deprecated == {"log-config-file": table.deprecated["log-config-file"]}
    assert release.environment == {"VLLM_HOST_IP", "VLLM_PORT"}
    assert release.environment < table.environment


def test_what_is_read_of_each_kind_of_flag(description: dict[str, Any]) -> None:
    flags = vllm_flags.condense("0.33.0", description).flags
    assert {name: flags[name] for name in sorted(flags)} == {
        "allowed-media-domains": "text? +",
        "cudagraph-capture-sizes": "int +",
        "device-ids": "text",
        "disable-log-stats": "flag",
        "dtype": "text : auto bfloat16 float float16 float32 half",
        "enable-log-requests": "bool --disable-log-requests",
        "enable-prefix-caching": "bool --disable-prefix-caching",
        "enforce-eager": "bool",
        "gpu-memory-utilization": "float --device-memory-utilization",
        "hf-overrides": "text",
        "hf-token": "text ?",
        "kv-cache-memory-bytes": "size?",
        "log-config-file": "text",
        "max-model-len": "size-auto",
        "prefix-caching-hash-algo": "text : sha256 sha256_cbor xxhash xxhash_cbor",
        "quantization": "text? -q",
        "runner": "text : auto draft generate pooling",
        "served-model-name": "text? +",
        "shutdown-timeout": "int",
    }


def test_the_committed_table_is_as_the_generator_writes_it(committed: list[vllm_flags.Release]) -> None:
    text = vllm_flags.TARGET.read_text("utf-8")
    assert vllm_flags.render(committed) == text
    assert vllm_flags.render(reversed(committed)) == text
    assert max(map(len, text.splitlines())) <= 120


def test_a_release_is_put_beside_the_others(
    sources: Path,
    committed: list[vllm_flags.Release],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(vllm_flags, "fetch", lambda version, scratch: sources)
    releases = vllm_flags.parse(vllm_flags.update(["0.34.0"], committed))
    assert releases[:-1] == committed
    assert (releases[-1].version, len(releases[-1].flags)) == ("0.34.0", 19)
    assert "vLLM 0.34.0: 19 flags, 1 of them deprecated, 2 variables" in capsys.readouterr().out
    # The same series again takes the other's place, and a flag that comes back is written so.
    again = vllm_flags.parse(vllm_flags.update(["0.33.1"], committed))
    assert [one.series for one in again] == [one.series for one in committed]
    assert again[-1].version == "0.33.1"
    assert again[-1].flags == releases[-1].flags
    back = [*releases, vllm_flags.Release("0.35.0", committed[-1].flags, {}, committed[-1].environment)]
    assert vllm_flags.parse(vllm_flags.render(back)) == back


def test_differences_from_an_installed_release_are_told(
    description: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = vllm_flags.condense("0.33.0", description)
    real = json.loads(json.dumps(description))
    monkeypatch.setattr(vllm_flags, "describe", lambda python: real)
    assert vllm_flags.verify("python", [table]) == []
    del real["flags"]["dtype"]
    real["flags"]["runner"]["choices"].append("new")
    real["environment"].append("VLLM_NEW")
    assert vllm_flags.verify("python", [table]) == [
        "flag dtype: table 'text : auto bfloat16 float float16 float32 half', vLLM None",
        "flag runner: table 'text : auto draft generate pooling', vLLM 'text : auto draft generate pooling new'",
        "variable VLLM_NEW: table None, vLLM ''",
    ]
    real["version"] = "9.9.0"
    assert vllm_flags.verify("python", [table]) == ["the table has no release of series 9.9"]


def test_a_parser_that_is_not_vllms_own_is_refused(description: dict[str, Any], tmp_path: Path) -> None:
    broken = {**description, "failed": {"vllm.config.model": "NameError: x", "vllm.benchmarks": "ImportError"}}
    with pytest.raises(vllm_flags.Refused, match=r"could not execute vllm\.config\.model: NameError: x"):
        vllm_flags.condense("0.33.0", broken)
    vllm_flags.condense("0.33.0", {**description, "failed": {"vllm.benchmarks": "ImportError"}})
    unknown = {**description["flags"]["dtype"], "kind": "?parse_moon"}
    with pytest.raises(vllm_flags.Refused, match="--dtype is read by parse_moon, which"):
        vllm_flags.specification("dtype", unknown)
    cut = unpack(tmp_path)
    (cut / "vllm" / "config" / "model.py").write_text("raise RuntimeError('cut')\n")
    with pytest.raises(vllm_flags.Refused, match=r"vllm\.config\.model was not executed to its end: RuntimeError: cut"):
        vllm_flags.describe(sys.executable, str(cut))


@pytest.mark.parametrize(
    ("help_text", "marked", "messages", "expected"),
    [
        ("How many.", False, [], ""),
        ("How many.", True, [], "it is marked as deprecated"),
        ("[DEPRECATED] How many.", True, [], "it is marked as deprecated"),
        ("[DEPRECATED] Use --y instead.", False, [], "Use --y instead."),
        ("(Deprecated) How many. Will be removed in v0.12.0.", False, [], "How many. Will be removed in v0.12.0."),
        (
            "This parameter is deprecated and has no effect.",
            False,
            [],
            "This parameter is deprecated and has no effect.",
        ),
        ("How many. Deprecated: it will be removed in v0.34.0. More.", False, [], "it will be removed in v0.34.0."),
        ("How many.", False, ["`--x` is deprecated. Use `--y 0` instead."], "--x is deprecated. Use --y 0 instead."),
        ("How many.", False, ["--x-y is deprecated."], ""),
        ("Shows deprecated metrics.", False, [], ""),
        ("It will be deprecated when --y is there.", False, [], ""),
    ],
)
def test_what_counts_as_deprecated(help_text: str, marked: bool, messages: list[str], expected: str) -> None:
    assert vllm_flags.deprecation("x", {"help": help_text, "deprecated": marked}, messages) == expected


def test_the_command_says_what_it_wants() -> None:
    argv = [sys.executable, str(vllm_flags.TOOLS / "vllm_flags.py")]
    done = subprocess.run(argv, check=False, capture_output=True, encoding="utf-8")
    assert done.returncode == 2
    assert 'make flags VLLM="0.34.0"' in done.stderr
