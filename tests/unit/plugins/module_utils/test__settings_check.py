# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.gpufleet.vllm.plugins.module_utils import _settings_check as check

ROLES = Path(__file__).parents[4] / "roles"
SETTINGS = check.settings_of(
    {
        path.parents[1].name: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in ROLES.glob("*/meta/argument_specs.yml")
    }
)
SERVICE = [{"name": "a", "model": "x/a"}]
DEFAULTS = {name: setting.option.get("default") for name, setting in SETTINGS.items()}


def unknown(**own: t.Any) -> list[tuple[str, str, str]]:
    found = check.unknown_variables({**DEFAULTS, "vllm_services": SERVICE, **own}, SETTINGS)
    assert {finding.code for finding in found} <= {"plan.unknown_variable"}
    return [(finding.severity, finding.seen.split()[0], finding.remedy.split(",")[0]) for finding in found]


def bad(read: t.Any = None, **own: t.Any) -> dict[str, t.Any]:
    return check.bad_settings({**DEFAULTS, **own}, SETTINGS, read or nothing)


def nothing(value: t.Any) -> t.Any:
    raise LookupError(value)


def test_every_role_is_read() -> None:
    assert {setting.role for setting in SETTINGS.values()} == {path.name for path in ROLES.iterdir() if path.is_dir()}
    assert SETTINGS["vllm_image_pull"].role == "vllm"
    assert check.settings_of({"a": None, "b": {}, "c": {"argument_specs": {"main": {}}}}) == {}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("vllm_sevices", "vllm_services"),
        ("vllm_service", "vllm_services"),
        ("vllm_serivces", "vllm_services"),
        ("vllm_fleet_service", "vllm_fleet_services"),
        ("vllm_services_fleet", "vllm_fleet_services"),
        ("vllm_preflight_skp", "vllm_preflight_skip"),
        ("vllm_image_pul", "vllm_image_pull"),
        ("vllm_hub_endpont", "vllm_hub_endpoint"),
        ("vllm_allow_public_bnd", "vllm_allow_public_bind"),
        ("vllm_runtim", "vllm_runtime"),
        ("vllm_modelroot", "vllm_model_root"),
        ("vllm_cup_args", "vllm_cpu_args"),
        ("vllm_host_sevices", "vllm_services"),
        ("vllm_teardown_artifact", "vllm_teardown_artifacts"),
    ],
)
def test_a_misspelt_name(name: str, meant: str) -> None:
    # In what DEFAULTS has, the fleet has no services.
    severity = "error" if meant == "vllm_fleet_services" else "warning"
    assert unknown(**{name: 1}) == [(severity, name, f"write {meant}")]


def test_the_finding_says_it_whole() -> None:
    (found,) = check.unknown_variables({"vllm_sevices": SERVICE, "vllm_services": []}, SETTINGS)
    assert (found.severity, found.seen) == ("error", "vllm_sevices is set, which nothing reads")
    assert found.expected == "a variable of the collection"
    assert found.remedy == "write vllm_services, or give it another name where it is a variable of your own"


@pytest.mark.parametrize("name", ["vllm_sevices", "vllm_host_sevices", "vlm_services", "vvllm_services"])
def test_it_is_an_error_where_nothing_would_be_left_to_run(name: str) -> None:
    assert unknown(**{name: SERVICE, "vllm_services": []}) == [("error", name, "write vllm_services")]
    assert unknown(**{name: SERVICE, "vllm_services": ""}) == [("error", name, "write vllm_services")]


@pytest.mark.parametrize(
    "name",
    [
        "vllm_port",
        "vllm_api_key",
        "vllm_version",
        "vllm_flags",
        "vllm_speech_image",
        "vllm_gpu_args",
        "vllm_models",
        "vllm_model_dir",
        "vllm_image_tag",
        "vllm_runtime_port",
        "vllm_services_common",
        "vllm_",
        "vllm",
        "vlm_services",
        "vm_services",
        "llm_services",
        "__vllm_sevices",
        "services",
        "vllm_plans",
        "vllm_hosted",
        "ansible_host",
    ],
)
def test_a_name_of_the_user_s_own(name: str) -> None:
    assert unknown(**{name: 1}) == []


@pytest.mark.parametrize(
    "user",
    ["{{ vllm_images.prod }}", ["{{ vllm_images.prod }}"], {"a": [{"b": "{% if vllm_images %}x{% endif %}"}]}],
)
def test_a_name_that_another_variable_is_made_of(user: t.Any) -> None:
    assert unknown(vllm_images={}, mine=user) == []


def test_a_name_that_is_only_mentioned_is_read_by_nobody() -> None:
    others = {"mine": "vllm_images", "also": "{{ my_vllm_images }}", "vllm_images": "{{ vllm_images }}"}
    facts = {"vllm_plan": {"x": "{{ vllm_images }}"}, "hostvars": object(), "ansible_x": "{{ vllm_images }}"}
    assert unknown(**others, **facts) == [("warning", "vllm_images", "write vllm_image")]


def test_without_the_specs_nothing_is_unknown() -> None:
    assert check.unknown_variables({"vllm_sevices": 1}, {}) == []


def test_every_known_name_is_known() -> None:
    names = {**SETTINGS, **dict.fromkeys(check.OF_PLAYBOOKS), **dict.fromkeys(check.RESULTS)}
    assert unknown(**dict.fromkeys(names, SERVICE)) == []


@pytest.mark.parametrize(
    ("one", "other", "slips"),
    [("", "", 0), ("abc", "", 3), ("sevices", "services", 1), ("serivces", "services", 1), ("kitten", "sitting", 3)],
)
def test_distance(one: str, other: str, slips: int) -> None:
    assert check.distance(one, other) == check.distance(other, one) == slips


# --- values ----------------------------------------------------------------------------------------------------------


def test_the_defaults_of_all_roles_are_good() -> None:
    assert bad() == {}


@pytest.mark.parametrize(
    ("name", "value", "seen", "expected", "remedy"),
    [
        ("vllm_runtime", "sytemd", "'sytemd'", "one of auto, compose, systemd, supervisor", "write systemd"),
        ("vllm_runtime", "docker", "'docker'", "one of auto, compose, systemd, supervisor", "write compose"),
        ("vllm_device", "gpu", "'gpu'", "one of auto, cuda, cpu", "write cuda"),
        ("vllm_device", "GPU", "'GPU'", "one of auto, cuda, cpu", "write cuda"),
        ("vllm_fleet_missing", "fre", "'fre'", "one of keep, free", "write free"),
        ("vllm_preflight_fail_on", "warn", "'warn'", "one of error, warning, never", "write warning"),
        ("vllm_artifacts_state", "stoped", "'stoped'", "one of present, verified, absent, stopped", "write stopped"),
        ("vllm_runtime_state", "absnt", "'absnt'", "one of present, absent", "write absent"),
        (
            "vllm_image_pull",
            ["x"],
            "a list",
            "one of missing, always, never",
            "write one of them, or leave vllm_image_pull out, which is missing",
        ),
        ("vllm_allow_cpu", "perhaps", "'perhaps'", "true or false", "correct vllm_allow_cpu, such as false, "),
        ("vllm_drain_seconds", "soon", "'soon'", "a whole number", "correct vllm_drain_seconds, such as 120, "),
        ("vllm_drain_seconds", 1.5, "1.5", "a whole number", "correct vllm_drain_seconds, such as 120, "),
        ("vllm_artifacts_timeout", "x" * 99, "'" + "x" * 39 + "...'", "a number", "correct vllm_artifacts_timeout, "),
        (
            "vllm_runtime",
            None,
            "empty",
            "one of auto, compose, systemd, supervisor",
            "write one of them, or leave vllm_runtime out, which is auto",
        ),
        (
            "vllm_drain_seconds",
            None,
            "empty",
            "a whole number",
            "write a whole number, or leave vllm_drain_seconds out",
        ),
        (
            "vllm_cpu_args",
            "secret words",
            "a text",
            "a mapping",
            """correct vllm_cpu_args: {KEY: VALUE} in YAML, or on the command line -e '{"vllm_cpu_args": {"KEY": """,
        ),
        (
            "vllm_preflight_skip",
            {"a": 1},
            "a mapping",
            "a list",
            """correct vllm_preflight_skip: [VALUE] in YAML, or on the command line -e '{"vllm_preflight_skip": ["V""",
        ),
    ],
)
def test_a_value_that_no_role_takes(name: str, value: t.Any, seen: str, expected: str, remedy: str) -> None:
    found = bad(**{name: value})
    assert list(found) == [name]
    finding = found[name]
    assert (finding.code, finding.severity) == ("plan.bad_setting", "error")
    assert (finding.seen, finding.expected) == (f"{name} is {seen}", expected)
    assert finding.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vllm_runtime", "compose"),
        ("vllm_allow_cpu", "yes"),
        ("vllm_allow_cpu", 1),
        ("vllm_drain_seconds", "30"),
        ("vllm_artifacts_retries", None),
        ("vllm_image", None),
        ("vllm_preflight_skip", "gpu.ecc,host.shm"),
        ("vllm_preflight_skip", ["gpu.ecc"]),
        ("vllm_repin", "whisper"),
        ("vllm_repin", True),
        ("vllm_expected_gpus", 8),
        ("vllm_model_root", "/data"),
        # Findings of their own say what is wrong with these.
        ("vllm_services", "x"),
        ("vllm_fleet_services", 5),
        # What deploy.yml decides, and the roles of other playbooks.
        ("vllm_engine_flavor", "rocm"),
        ("vllm_prune_confirm", "perhaps"),
        ("gpu_host_driver", "perhaps"),
        ("unknown", "x"),
    ],
)
def test_a_value_that_is_good_or_none_of_the_plan_s_business(name: str, value: t.Any) -> None:
    assert bad(**{name: value}) == {}


def test_a_template_is_what_it_comes_to() -> None:
    values = {"{{ good }}": "systemd", "{{ wrong }}": "x"}
    assert bad(values.__getitem__, vllm_runtime="{{ good }}") == {}
    assert bad(values.__getitem__, vllm_runtime="{{ wrong }}")["vllm_runtime"].seen == "vllm_runtime is 'x'"
    assert bad(values.__getitem__, vllm_runtime="{{ unreadable }}") == {}


def test_a_secret_is_not_shown() -> None:
    settings = {"vllm_x_token": check.Setting("vllm", {"type": "int"})}
    assert check.bad_settings({"vllm_x_token": "hunter2"}, settings, nothing)["vllm_x_token"].seen == (
        "vllm_x_token is a text"
    )
