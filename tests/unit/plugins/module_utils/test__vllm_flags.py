# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.gpufleet.vllm.plugins.module_utils import _vllm_flags_table
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, INFO, WARNING, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import parse_services, parse_setting
from ansible_collections.gpufleet.vllm.plugins.module_utils._vllm_flags import (
    check_environment,
    check_flags,
    choose,
    known_versions,
    series,
    tables,
    version_of_image,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._vllm_flags_gone import BEFORE, REPLACED
from ansible_collections.gpufleet.vllm.plugins.module_utils._vllm_flags_value import Flag, problem
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[4]
NEWEST = known_versions()[-1]


def only(arguments: dict[str, t.Any], version: str = "0.32.0", **kwargs: str) -> Finding:
    findings = check_flags(arguments, version, "svc", **kwargs)
    assert len(findings) == 1, findings
    return findings[0]


def codes(arguments: dict[str, t.Any], version: str = "0.32.0") -> list[str]:
    return [finding.code for finding in check_flags(arguments, version)]


# ---- the table


def test_every_release_is_one_series_in_order_and_every_change_is_of_one_of_them() -> None:
    names = [series(version) for version in known_versions()]
    assert names == sorted(set(names), key=lambda name: int(name.partition(".")[2]))
    for text in (_vllm_flags_table.FLAGS, _vllm_flags_table.DEPRECATED):
        assert set(re.findall(r"; (\d+\.\d+) ", text.replace("\n ", ""))) <= set(names)
    assert set(re.findall(r"[+-](\d+\.\d+)", _vllm_flags_table.ENVIRONMENT)) == set(names)


def test_there_is_a_table_for_many_releases_and_each_is_of_a_plausible_size() -> None:
    assert {"0.11", "0.20", "0.25", "0.30", "0.31", "0.32", "0.33"} <= set(tables())
    for table in tables().values():
        assert 130 < len(table.flags) < 600
        assert 80 < len(table.environment) < 600
        assert {"max-model-len", "tensor-parallel-size", "port", "served-model-name"} <= set(table.flags)
    counts = [len(table.flags) for table in tables().values()]
    assert counts[-1] > counts[0]


def test_tables_hold_what_the_releases_took() -> None:
    old, new = tables()["0.11"], tables()["0.33"]
    assert old.flags["swap-space"].kind == "float"
    assert "swap-space" not in new.flags
    assert new.options["-tp"].name == "tensor-parallel-size"
    assert new.options["--disable-log-requests"].name == "enable-log-requests"
    assert "--disable-log-requests" not in tables()["0.32"].options
    assert new.flags["dtype"].choices == ("auto", "bfloat16", "float", "float16", "float32", "half")
    assert new.flags["max-lora-rank"].kind == "int"
    assert "8" in new.flags["max-lora-rank"].choices
    assert new.flags["hf-token"].values == "?"
    assert new.flags["served-model-name"].values == "+"
    assert "VLLM_USE_V1" in tables()["0.10"].environment
    assert "VLLM_USE_V1" not in new.environment
    assert new.deprecated["log-config-file"].endswith("Use --logging-config.pylogging_config_file instead.")


def value_for(flag: Flag) -> t.Any:
    if flag.kind in ("bool", "flag"):
        return True
    value: t.Any = flag.choices[0] if flag.choices else {"json": {}, "text": "x"}.get(flag.kind, 1)
    if flag.values.isdigit():
        return [value] * int(flag.values)
    return [value, value] if flag.values in ("+", "*") else value


@pytest.mark.parametrize("version", known_versions())
def test_every_flag_of_a_release_passes_against_it(version: str) -> None:
    table = tables()[series(version)]
    for option, flag in table.options.items():
        if option.startswith("--") and not option.startswith("--no-"):
            findings = check_flags({option[2:]: value_for(flag)}, version, "svc")
            assert [f.code for f in findings] == ["plan.flag_deprecated"] * (flag.name in table.deprecated), findings
        if flag.kind == "bool":
            assert "plan.flag_value" not in codes({flag.name: False}, version)
            assert f"--no-{flag.name}" in flag.options
        for choice in flag.choices:
            assert problem(flag, flag.name, choice if flag.values != "2" else [choice] * 2) is None


def test_what_the_plan_itself_sets_is_taken_by_the_releases_that_have_it() -> None:
    own = {
        "port": 8000,
        "host": "127.0.0.1",
        "served-model-name": "m",
        "tensor-parallel-size": 2,
        "max-model-len": "auto",
    }
    for version in known_versions():
        wanted = (
            own
            if series(version) not in ("0.8", "0.9", "0.10", "0.11", "0.12", "0.13")
            else {**own, "max-model-len": 1}
        )
        assert codes({**wanted}, version) == []
    assert codes({"shutdown-timeout": 120}, "0.18.0") == []
    assert codes({"shutdown-timeout": 120}, "0.17.1") == ["plan.flag_too_new"]


# ---- which table


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.33.0", "0.33"),
        ("v0.33.1", "0.33"),
        ("0.32.0+cpu", "0.32"),
        ("v0.30.0-cu129", "0.30"),
        ("0.8.5.post1", "0.8"),
        ("latest", ""),
        ("", ""),
        ("nightly-abc", ""),
    ],
)
def test_series(version: str, expected: str) -> None:
    assert series(version) == expected


def test_a_patch_release_uses_the_table_of_its_series() -> None:
    chosen = choose("0.22.0")
    assert (chosen.table.version, chosen.own) == ("0.22.1", True)
    assert codes({"max-num-seqs": 4}, "0.22.0") == []


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("", "not known; the list of 0.33.0"),
        ("latest", "not known; the list of 0.33.0"),
        ("0.99.0", "no list for vLLM 0.99; that of 0.33.0"),
        ("0.6.6", "no list for vLLM 0.6; that of 0.8.5.post1"),
        ("0.32.1.dev7+gabc", "a build between two releases; the list of 0.32.0"),
        ("0.33.0rc2", "a build between two releases; the list of 0.33.0"),
    ],
)
def test_an_unknown_release_is_said_and_an_unknown_flag_then_only_a_warning(version: str, says: str) -> None:
    findings = check_flags({"max-modle-len": 1, "max-num-seqs": "many"}, version, "svc")
    by_code = {finding.code: finding for finding in findings}
    assert by_code["plan.flags_unchecked"].severity == INFO
    assert says in by_code["plan.flags_unchecked"].seen
    assert by_code["plan.flag_unknown"].severity == WARNING
    assert by_code["plan.flag_unknown"].remedy == "write max-model-len under args"
    assert by_code["plan.flag_value"].severity == WARNING
    assert check_flags({}, version) == []


def test_what_a_neighbour_of_a_patch_release_takes_is_no_error() -> None:
    # The table of 0.11 is that of 0.11.2; 0.11.0 may still have had what 0.10 had.
    assert only({"rope-theta": 10000}, "0.11.0").severity == WARNING
    assert only({"rope-theta": 10000}, "0.11.2").severity == ERROR
    # 0.13.1 may have had what 0.14 has; and nobody knows what a later 0.33 has.
    assert only({"allow-deprecated-quantization": True}, "0.13.1").severity == WARNING
    assert only({"allow-deprecated-quantization": True}, "0.13.0").severity == ERROR
    assert only({"brand-new": True}, "0.33.9").severity == WARNING
    assert only({"dtype": "float8"}, "0.33.9").severity == WARNING


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("vllm/vllm-openai:v0.33.0", "0.33.0"),
        ("vllm/vllm-openai:v0.30.0-cu129@sha256:" + "a" * 64, "0.30.0-cu129"),
        ("registry.local:5000/mirror/vllm-openai:v0.32.0", "0.32.0"),
        ("vllm/vllm-openai:latest", ""),
        ("vllm/vllm-openai", ""),
        ("registry.local:5000/team/server:1.2.0", ""),
        ("registry.local:5000/team/vllm-audio:v1", ""),
    ],
)
def test_version_of_image(reference: str, expected: str) -> None:
    assert version_of_image(reference) == expected


# ---- unknown


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("max-modle-len", "max-model-len"),
        ("gpu-memory-utilisation", "gpu-memory-utilization"),
        ("tensor-parallelism-size", "tensor-parallel-size"),
        ("enable-prefix-cacheing", "enable-prefix-caching"),
        ("limit-mm-per-promt", "limit-mm-per-prompt"),
    ],
)
def test_an_unknown_flag_gets_the_nearest_spelling(written: str, meant: str) -> None:
    finding = only({written: 1})
    assert (finding.code, finding.severity, finding.service) == ("plan.flag_unknown", ERROR, "svc")
    assert finding.seen == f"vLLM 0.32.0 has no flag --{written}"
    assert finding.remedy == f"write {meant} under args"


def test_the_nearest_spelling_is_one_of_that_release() -> None:
    assert only({"all2all-backed": "naive"}, "0.11.2").remedy == "write all2all-backend under args"
    assert "all2all-backend" not in only({"all2all-backed": "naive"}, "0.10.2").remedy


def test_an_unknown_flag_like_nothing_names_the_help_and_the_variable() -> None:
    finding = only({"nonsense": 1}, where="vllm_default_args")
    assert finding.remedy.startswith(
        "delete nonsense under vllm_default_args; see what there is: vllm serve --help=all"
    )


def test_short_flags_with_two_dashes() -> None:
    assert only({"dcp": 2}).remedy.startswith("write decode-context-parallel-size under args")
    assert only({"O3": True}).remedy == "write optimization-level: 3 under args"
    assert only({"q": "awq"}).remedy.startswith("write quantization under args")


def test_the_beginning_of_a_flag_is_taken_as_argparse_takes_it() -> None:
    finding = only({"gpu-memory-util": 0.5})
    assert (finding.code, finding.severity) == ("plan.flag_abbreviated", INFO)
    assert finding.remedy.startswith("write gpu-memory-utilization under args")
    ambiguous = only({"max-num": 5})
    assert (ambiguous.code, ambiguous.severity) == ("plan.flag_unknown", ERROR)
    assert "--max-num-batched-tokens" in ambiguous.seen
    assert codes({"gpu-memory-util": "much"}) == ["plan.flag_abbreviated", "plan.flag_value"]
    assert codes({"enable-prefix-cach": False}) == ["plan.flag_abbreviated"]


def test_keys_of_json_flags_behind_a_dot() -> None:
    assert codes({"compilation-config.level": 3, "kv-transfer-config.kv_connector": "x"}) == []
    assert only({"max-num-seqs.a": 3}).code == "plan.flag_value"
    assert only({"dtype.a": 3}).code == "plan.flag_value"
    assert only({"compilation-confg.level": 3}).code == "plan.flag_unknown"


# ---- removed, too new, deprecated


GONE = {
    "task": "runner",
    "swap-space": "kv-offloading-size",
    "disable-log-requests": "enable-log-requests",
    "guided-decoding-backend": "structured-outputs-config",
    "max-seq-len-to-capture": "max-cudagraph-capture-size",
    "num-scheduler-steps": "async-scheduling",
    "enable-reasoning": "reasoning-parser",
    "rope-scaling": "hf-overrides",
    "rope-theta": "hf-overrides",
    "cuda-graph-sizes": "cudagraph-capture-sizes",
    "disable-frontend-multiprocessing": "delete it",
    "use-v2-block-manager": "delete it",
    "worker-use-ray": "distributed-executor-backend",
    "speculative-model": "speculative-config",
    "max-num-partial-prefills": "long-prefill-token-threshold",
    "disable-mm-preprocessor-cache": "mm-processor-cache-gb",
}


@pytest.mark.parametrize(("name", "replacement"), GONE.items())
def test_a_removed_flag_says_when_it_went_and_what_took_its_place(name: str, replacement: str) -> None:
    finding = only({name: True})
    assert (finding.code, finding.severity) == ("plan.flag_removed", ERROR)
    assert re.search(r"is gone since vLLM 0\.\d+|was gone before vLLM 0\.8", finding.seen)
    assert replacement in finding.remedy


def test_the_release_that_a_flag_went_with() -> None:
    assert only({"swap-space": 4}).seen == "--swap-space is gone since vLLM 0.18; this is vLLM 0.32.0"
    assert codes({"swap-space": 4}, "0.17.1") == []


def test_every_flag_that_ever_went_has_a_replacement_and_each_names_flags_that_exist() -> None:
    newest = tables()[series(NEWEST)]
    ever = {name for table in tables().values() for name in table.flags}
    assert sorted(ever - set(newest.flags) - set(REPLACED)) == []
    assert sorted(name for name in REPLACED if name not in ever | BEFORE) == []
    assert sorted(BEFORE & ever) == []
    for table in tables().values():
        assert set(table.deprecated) <= set(table.flags)
    assert sorted(set(newest.deprecated) - set(REPLACED)) == []
    for advice in REPLACED.values():
        for name in re.findall(r"\b[a-z0-9]+(?:-[a-z0-9]+)+(?=:)", advice):
            assert f"--{name}" in newest.options, advice


def test_a_flag_of_a_later_release() -> None:
    finding = only({"kda-decode-backend": "triton"}, "0.20.0", where="vllm_default_args")
    assert (finding.code, finding.severity) == ("plan.flag_too_new", ERROR)
    assert finding.seen == "--kda-decode-backend exists from vLLM 0.30 on; this is vLLM 0.20.0"
    assert finding.remedy == "delete kda-decode-backend under vllm_default_args, or pin vLLM 0.30 or newer"


def test_a_deprecated_flag_is_a_warning_with_vllms_own_words() -> None:
    finding = only({"log-config-file": "/etc/vllm/log.json"})
    assert (finding.code, finding.severity) == ("plan.flag_deprecated", WARNING)
    assert finding.seen.startswith("vLLM 0.32.0 says: --log-config-file is deprecated and will be removed in v0.33.0.")
    assert "logging-config: {pylogging_config_file: PATH}" in finding.remedy
    assert only({"ir-op-priority": {}}, "0.33.0").code == "plan.flag_deprecated"
    assert codes({"ir-op-priority": {}}, "0.32.0") == []
    assert only({"disable-log-requests": True}, "0.13.0").seen == (
        "--disable-log-requests in vLLM 0.13.0: it is marked as deprecated"
    )


# ---- values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max-num-seqs", 4),
        ("max-num-seqs", "4"),
        ("max-num-batched-tokens", "8k"),
        ("max-num-batched-tokens", "25.6k"),
        ("max-model-len", "auto"),
        ("max-model-len", -1),
        ("kv-cache-memory-bytes", "4G"),
        ("gpu-memory-utilization", 0.9),
        ("gpu-memory-utilization", 1),
        ("enforce-eager", False),
        ("disable-log-stats", True),
        ("compilation-config", {"level": 3}),
        ("compilation-config", '{"level": 3}'),
        ("kv-transfer-config", '{"cpu_bytes_to_use": 80G, "name": "4G"}'),
        ("hf-overrides", {"a": 1}),
        ("hf-token", True),
        ("allowed-media-domains", ["a", "b"]),
        ("allowed-media-domains", "a"),
        ("cudagraph-capture-sizes", [1, 2, 4]),
        ("moe-backend", "Flashinfer-TRTLLM"),
        ("quantization", "from_a_plugin"),
        ("max-lora-rank", 16),
        ("max-lora-rank", "16"),
        ("tokenizer-revision", "None"),
        ("distributed-executor-backend", "my.module.Executor"),
        ("mm-processor-device", "xpu"),
        ("middleware", ["a.b"]),
        ("enforce-eager", []),
    ],
)
def test_values_that_vllm_takes(name: str, value: t.Any) -> None:
    assert codes({name: value}) == []


@pytest.mark.parametrize(
    ("name", "value", "seen", "expected", "remedy"),
    [
        ("max-num-seqs", "many", "a text of 4 characters", "a whole number", "correct max-num-seqs under args"),
        ("max-num-seqs", 4.5, "4.5", "a whole number", ""),
        ("max-num-seqs", True, "true", "a whole number; the flag needs a value", ""),
        ("max-num-seqs", [1, 2], "a list of 2", "1 value, each a whole number", ""),
        ("gpu-memory-utilization", "high", "a text of 4 characters", "a number", ""),
        ("max-num-batched-tokens", "1.5K", "a text of 4 characters", "a whole number, or one such as 8k, 2M or 4G", ""),
        ("dtype", "bfloat", "'bfloat'", "one of auto, bfloat16, float", "write dtype: bfloat16 under args"),
        ("dtype", "FP8", "a text of 3 characters", "one of auto, bfloat16", "correct dtype under args"),
        ("max-lora-rank", 17, "17", "one of 1, 128, 16", ""),
        ("enforce-eager", "yes", "a text of 3 characters", "true or false: the flag takes no value", ""),
        ("enforce-eager", 1, "1", "true or false: the flag takes no value", ""),
        (
            "disable-log-stats",
            False,
            "false",
            "there is no --no-disable-log-stats",
            "delete disable-log-stats under args",
        ),
        ("max-num-seqs", False, "false", "there is no --no-max-num-seqs", "or give it a value"),
        ("compilation-config", "{level}", "a text of 7 characters", "JSON, or a mapping", ""),
        ("compilation-config", [1, 2], "a list of 2", "1 value", "write a mapping or JSON, not a list under args"),
        ("allowed-media-domains", [], "a list of 0", "at least one value", ""),
        ("tokenizer", "-x", "a text of 2 characters", "does not begin with '-'", ""),
    ],
)
def test_values_that_vllm_refuses(name: str, value: t.Any, seen: str, expected: str, remedy: str) -> None:
    finding = only({name: value})
    assert (finding.code, finding.severity) == ("plan.flag_value", ERROR)
    assert finding.seen == f"--{name} is {seen}"
    assert expected in finding.expected
    assert remedy in finding.remedy
    assert "{where}" not in finding.remedy


@pytest.mark.parametrize(
    "name", ["hf-token", "api-key", "dtype", "max-num-seqs", "compilation-config", "enforce-eager"]
)
@pytest.mark.parametrize(
    "value", ["-hunter2-secret", ["hunter2-secret", "-b", "c"], {"hunter2-secret": "-x"}, b"hunter2"]
)
def test_no_finding_shows_what_may_be_a_secret(name: str, value: t.Any) -> None:
    for arguments in ({name: value}, {name[:-1]: value}, {name + "x": value}):
        assert "hunter2" not in repr(check_flags(arguments, "0.32.0"))
    assert "12345678" not in repr(check_flags({"hf-token": [12345678, "-x"]}, "0.32.0"))


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(
    name=st.sampled_from(sorted(tables()["0.33"].flags)) | st.text(),
    value=NESTED,
    version=st.sampled_from([*known_versions(), "", "nightly", "9.9"]) | st.text(),
)
def test_whatever_a_user_writes_gives_findings_and_no_exception(name: str, value: t.Any, version: str) -> None:
    for finding in check_flags({name: value}, version):
        assert finding.severity in (ERROR, WARNING, INFO)
        assert finding.seen
        assert finding.expected
        assert finding.remedy
    check_environment([name], version)


# ---- variables


def test_variables_that_vllm_does_not_read() -> None:
    assert check_environment(["VLLM_HOST_IP", "VLLM_TEST_X", "NCCL_DEBUG", "HF_TOKEN"], "0.33.0") == []
    [finding] = check_environment(["VLLM_NO_USAGE_STAT"], "v0.33.0", "svc")
    assert (finding.code, finding.severity, finding.service) == ("plan.environment_unknown", WARNING, "svc")
    assert finding.seen == "vLLM 0.33.0 does not read VLLM_NO_USAGE_STAT"
    assert finding.remedy == "write VLLM_NO_USAGE_STATS under environment"
    [gone] = check_environment(["VLLM_USE_V1"], "0.33.0", where="vllm_default_environment")
    assert gone.seen.endswith("was the last that did")
    assert gone.remedy == "delete VLLM_USE_V1 under vllm_default_environment"
    newer = min(tables()["0.33"].environment - tables()["0.30"].environment)
    [early] = check_environment([newer], "0.30.0")
    assert "it is read from 0.3" in early.seen
    assert "or pin vLLM" in early.remedy
    assert check_environment(["VLLM_NO_USAGE_STAT"], "nightly") == []


# ---- what the repository itself writes


def written() -> list[tuple[str, dict[str, t.Any], list[str]]]:
    """Flags and variables of the roles' defaults, the inventories, the scenarios and the documentation."""
    documents: list[tuple[str, t.Any]] = []
    files = [ROOT / "roles" / "vllm" / "defaults" / "main.yml", *ROOT.glob("inventory/**/*.yml")]
    files += [*ROOT.glob("extensions/molecule/*/inventory/*.yml"), *ROOT.glob("playbooks/*.yml")]
    for path in sorted(files):
        documents.append((path.name, yaml.safe_load(path.read_text("utf-8"))))
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("roles/*/README.md")]):
        for block in re.findall(r"```ya?ml\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
            try:
                documents.append((path.name, yaml.safe_load(block)))
            except yaml.YAMLError:
                continue
    found: list[tuple[str, dict[str, t.Any], list[str]]] = []
    for name, document in documents:
        collect(name, document, found)
    return found


def collect(name: str, value: t.Any, found: list[tuple[str, dict[str, t.Any], list[str]]]) -> None:
    if isinstance(value, list):
        for item in value:
            collect(name, item, found)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in ("vllm_default_args", "vllm_cpu_args") and isinstance(item, dict):
            parsed, findings = parse_setting("args", key, item)
            assert findings == []
            found.append((name, parsed, []))
        elif key in ("vllm_default_environment", "vllm_cpu_environment") and isinstance(item, dict):
            found.append((name, {}, list(item)))
        elif key == "vllm_services" and isinstance(item, list):
            services, _findings = parse_services(item)
            found.extend((name, dict(service.args), list(service.environment)) for service in services)
        else:
            collect(name, item, found)


@pytest.mark.parametrize("version", ["0.32.0", "0.33.0"])
def test_defaults_and_examples_of_the_repository_pass(version: str) -> None:
    seen = written()
    assert sum(len(arguments) for _name, arguments, _variables in seen) >= 6
    assert sum(len(variables) for _name, _arguments, variables in seen) >= 6
    for name, arguments, variables in seen:
        assert check_flags(arguments, version) == [], name
        assert check_environment(variables, version) == [], name


def test_a_list_where_one_word_of_json_is_wanted() -> None:
    """``allowed-origins: ["*"]`` in YAML is a list, of which vLLM would get a star that is no JSON."""
    [found] = check_flags({"allowed-origins": ["*"]}, "0.33.0")
    assert (found.code, found.severity) == ("plan.flag_value", "error")
    assert found.remedy == "write the list as JSON in quotes, allowed-origins: '[...]', under args"
    assert check_flags({"allowed-origins": '["*"]'}, "0.33.0") == []


def test_numbers_below_zero_are_no_flags() -> None:
    assert check_flags({"cpu-offload-gb": -1.5, "seed": -1}, "0.33.0") == []
    assert [one.code for one in check_flags({"cpu-offload-gb": "-x"}, "0.33.0")] == ["plan.flag_value"]


@pytest.mark.parametrize(
    ("version", "arguments"),
    [
        (
            "0.8.5",
            {
                "enable-reasoning": True,
                "reasoning-parser": "deepseek_r1",
                "rope-scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
                "limit-mm-per-prompt": "image=5,video=0",
                "swap-space": 16,
                "disable-log-requests": True,
                "task": "generate",
                "compilation-config": 3,
                "speculative-config": {"model": "x/y", "num_speculative_tokens": 5},
                "lora-modules": ["sql=/data/lora", '{"name": "b", "path": "/data/b"}'],
            },
        ),
        (
            "0.11.0",
            {
                "limit-mm-per-prompt": {"image": 4, "video": {"count": 1, "num_frames": 32}},
                "mm-processor-kwargs": {"max_pixels": 1003520},
                "compilation-config": {"cudagraph_mode": "FULL_AND_PIECEWISE", "cudagraph_capture_sizes": [1, 2]},
                "enable-prefix-caching": False,
                "mm-encoder-tp-mode": "data",
                "kv-transfer-config": {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"},
                "hf-overrides": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
                "data-parallel-size": 8,
                "runner": "pooling",
                "structured-outputs-config": {"backend": "xgrammar"},
                "structured-outputs-config.reasoning_parser": "qwen3",
            },
        ),
        (
            "0.33.0",
            {
                "limit-mm-per-prompt.image": 4,
                "limit-mm-per-prompt.video": 0,
                "max-num-batched-tokens": "16k",
                "kv-cache-memory-bytes": "25G",
                "eplb-config": {"window_size": 1000, "num_redundant_experts": 2},
                "eplb-config.log_balancedness": True,
                "cudagraph-capture-sizes": [1, 2, 4, 8],
                "async-scheduling": False,
                "disable-log-requests": True,
                "allowed-media-domains": ["a.example", "b.example"],
                "lora-modules": [{"name": "a", "path": "/data/a"}, "b=/data/b"],
                "sse-keep-alive-interval": 15,
                "disable-access-log-for-endpoints": "/health,/metrics",
                "attention-config": {"backend": "FLASHINFER"},
            },
        ),
    ],
)
def test_command_lines_of_recipes_are_taken(version: str, arguments: dict[str, t.Any]) -> None:
    """As they stand in vLLM's own recipes, in the ways that YAML lets a person write them."""
    assert [one.code for one in check_flags(arguments, version) if one.severity == "error"] == []
