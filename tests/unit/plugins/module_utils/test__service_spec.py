# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _service_spec as spec
from ansible_collections.gpufleet.vllm.plugins.module_utils import _spec_maps
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding, as_text

SECRET = "sk-hunter2-0123456789"
BAD_GPUS = ("0,1", "all", True, -1, 257, 1.5, [], [True], [-1], ["GPU-"], ["GPU-5c2d..."], [256], [None])
UUID = "GPU-a0000009-0000-4000-8000-000000000001"


def raw(**keys: t.Any) -> dict[str, t.Any]:
    return {"name": "chat", "model": "acme/tiny", **keys}


def parsed(**keys: t.Any) -> spec.Service:
    service, findings = spec.parse_service(raw(**keys))
    assert findings == []
    assert service is not None
    return service


def refused(**keys: t.Any) -> Finding:
    service, findings = spec.parse_service(raw(**keys))
    assert service is None
    assert len(findings) == 1, findings
    finding = findings[0]
    assert finding.severity == "error"
    assert all((finding.seen, finding.expected, finding.remedy))
    return finding


# -- values that are taken


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", "qwen-vl", "qwen-vl"),
        ("name", "a" * 63, "a" * 63),
        ("model", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("revision", "v1.0", "v1.0"),
        ("path", "/data/m", "/data/m"),
        ("path", "/data//m/./x/", "/data/m/x"),
        ("path", "//data/m", "/data/m"),
        ("include", "*.json", ("*.json",)),
        ("include", ["*.json", "*.safetensors"], ("*.json", "*.safetensors")),
        ("exclude", [], ()),
        ("served_model_name", "Qwen2.5-VL", "Qwen2.5-VL"),
        ("gpus", [0, 1], (0, 1)),
        ("gpus", ["0", "1"], (0, 1)),
        ("gpus", (1, 0), (1, 0)),
        ("gpus", [UUID, 2], (UUID, 2)),
        ("gpus", ["MIG-a0000009-0000-4000-8000-000000000001"], ("MIG-a0000009-0000-4000-8000-000000000001",)),
        ("gpus", 2, 2),
        ("gpus", "2", 2),
        ("gpus", 0, 0),
        ("port", 8000, 8000),
        ("port", "8000", 8000),
        ("port", " 8000 ", 8000),
        ("bind_address", "0.0.0.0", "0.0.0.0"),
        ("bind_address", "::", "::"),
        ("bind_address", "2001:db8::7", "2001:db8::7"),
        ("bind_address", "gpu-01.example.com", "gpu-01.example.com"),
        ("max_model_len", 32000, 32000),
        ("max_model_len", "32000", 32000),
        ("max_model_len", "auto", "auto"),
        ("tensor_parallel_size", "4", 4),
        ("drain_seconds", 0, 0),
        ("ready_timeout", "60", 60),
        ("environment", {"A": "x", "B": 1, "C": 0.5, "D": True, "E": False, "F": ""},
         {"A": "x", "B": "1", "C": "0.5", "D": "1", "E": "0", "F": ""}),
        ("environment", {"A": "tab\there, 'quotes' and $dollars"}, {"A": "tab\there, 'quotes' and $dollars"}),
    ],
)  # fmt: skip
def test_good_values(key: str, value: t.Any, expected: t.Any) -> None:
    assert getattr(parsed(**{key: value}), key) == expected


def test_defaults() -> None:
    service = parsed()
    assert (service.revision, service.port, service.gpus, service.probes) == ("master", 8000, None, None)
    assert (service.drain_seconds, service.ready_timeout, service.bind_address) == (None, None, "")


@pytest.mark.parametrize("key", sorted(set(spec.KEYS) - {"name", "model", "api_key"}))
def test_an_empty_or_null_value_is_not_set(key: str) -> None:
    assert parsed(**{key: ""}) == parsed()
    assert parsed(**{key: None}) == parsed()


# -- values that are not


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        *[("name", name, "lower-case letters") for name in ("Qwen", "a_b", "-a", "a-", "a" * 64, "../x", "a\n", 7, "")],
        *[("model", model, "owner/name") for model in ("tiny", "a/b/c", "../x", "a/..", "a/.b", "a b/c", 7, "a/b\n")],
        ("revision", 1.0, "a non-empty text"),
        ("revision", " ", "a non-empty text"),
        ("revision", "v1\nUser=root", "control characters"),
        *[("path", path, "an absolute path") for path in ("m", "~/m", "/a/../b", "/", "//", "/.")],
        ("path", "/a\nb", "control characters"),
        ("include", {"a": 1}, "a list of patterns"),
        ("include", [1], "a non-empty text"),
        ("exclude", 7, "a list of patterns"),
        ("served_model_name", ["a"], "a non-empty text"),
        ("served_model_name", "a\tb", "control characters"),
        *[("gpus", gpus, "nvidia-smi") for gpus in BAD_GPUS],
        ("gpus", [0, "0"], "each GPU once"),
        ("gpus", [UUID, UUID], "each GPU once"),
        *[("port", port, "a whole number from 1 to") for port in (0, 65536, True, -1, 8000.0, "http", "8_000", [1])],
        *[("bind_address", address, "an address such") for address in ("[::1]", "*", "a b", "http://x", "::g", "1:2")],
        *[("max_model_len", length, "a number of tokens") for length in (0, "32k", True, -1, 1.5, "AUTO")],
        ("tensor_parallel_size", 0, "a whole number from 1 to 256"),
        ("tensor_parallel_size", True, "a whole number from 1 to 256"),
        ("drain_seconds", -1, "a whole number from 0 to 86400"),
        ("ready_timeout", 0, "a whole number from 1 to 86400"),
        ("args", ["--x"], "a mapping of vLLM flags"),
        ("args", "--x 1", "a mapping of vLLM flags"),
        ("args", {"dtype": None}, "a value for 'dtype'"),
        ("args", {"chat-template": "a\0b"}, "no NUL character"),
        ("args", {"max num seqs": 1}, "names of vLLM flags"),
        ("args", {"x=1": True}, "names of vLLM flags"),
        ("args", {"max_num_seqs": 1, "max-num-seqs": 2}, "'max-num-seqs' once"),
        ("args", {"enable-x": True, "no-enable-x": True}, "'enable-x' once"),
        ("environment", ["A=1"], "a mapping of environment variables"),
        ("environment", {"A B": "1"}, "variable names"),
        ("environment", {1: "1"}, "variable names"),
        *[
            ("environment", {"A": value}, "one line of text for A")
            for value in ("a\nb", "a\0", "a\rb", None, [1], "\x1b[1m", "\ud800")
        ],
        *[("environment", {name: "0"}, f"no {name} under environment") for name in _spec_maps.DEVICE_VARIABLES],
        ("environment", {"VLLM_API_KEY": "x"}, "no VLLM_API_KEY here"),
        ("secret_environment", {"VLLM_API_KEY": "x"}, "no VLLM_API_KEY here"),
        ("secret_environment", "A=1", "a mapping of environment variables"),
        ("api_key", "", "a key, and not an empty text"),
        ("api_key", 7, "a non-empty text"),
        ("api_key", "a\nb", "control characters"),
        ("probes", {"kind": "chat"}, "a list of probes"),
        ("probes", ["chat"], "probes as mappings"),
        ("probes", [{"prompt": "x"}], "probes as mappings"),
        ("probes", [{"kind": "chat", "promt": "x"}], "probes as mappings"),
        ("probes", [{"kind": "dance"}], "a probe kind among chat"),
        ("probes", [{"kind": "chat", "expect": "("}], "a regular expression"),
        ("probes", [{"kind": "chat", "max_tokens": 0}], "a whole number from 1"),
    ],
)  # fmt: skip
def test_bad_values(key: str, value: t.Any, expected: str) -> None:
    finding = refused(**{key: value})
    assert finding.code == "service.bad_value"
    assert expected in finding.expected


def test_probes() -> None:
    service = parsed(probes=[{"kind": "chat", "prompt": "Hi", "expect": "(?i)hi", "max_tokens": "8"}])
    assert service.probes is not None
    assert service.probes[0].as_dict() == {"kind": "chat", "prompt": "Hi", "expect": "(?i)hi", "max_tokens": 8}
    assert parsed(probes=[]).probes == ()


def test_an_empty_setting_of_a_probe_is_its_default() -> None:
    service = parsed(probes=[{"kind": "chat", "prompt": None, "expect": None, "max_tokens": None}])
    assert service.probes == (spec.Probe("chat"),)


# -- flags


@pytest.mark.parametrize("flag", sorted(_spec_maps.RESERVED_FLAGS))
@pytest.mark.parametrize("form", ["{}", "--{}", "no-{}", "--no-{}", "-{}"])
def test_reserved_flags_in_every_spelling(flag: str, form: str) -> None:
    for name in sorted({form.format(flag), form.format(flag).replace("-", "_")}):
        finding = refused(args={name: "x"})
        assert finding.remedy == f"set {_spec_maps.RESERVED_FLAGS[flag]}: on the service instead"


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("tp", "tensor_parallel_size"),
        ("-tp", "tensor_parallel_size"),
        ("tensor-parallel", "tensor_parallel_size"),
        ("served_model", "served_model_name"),
        ("max-model", "max_model_len"),
        ("api", "api_key"),
    ],
)
def test_short_forms_of_reserved_flags(flag: str, key: str) -> None:
    assert refused(args={flag: 1}).remedy == f"set {key}: on the service instead"


def test_flags_that_no_key_replaces() -> None:
    assert "under args" in refused(args={"config": "/etc/vllm.yaml"}).remedy
    assert "secret_environment" in refused(args={"hf_token": SECRET}).remedy


def test_flags_in_one_spelling() -> None:
    arguments = {"--max_num_seqs": 8, "pp": 2, "no-enable-x": True, "no_enable_y": False, "enforce-eager": True}
    assert parsed(args=arguments).args == {
        "max-num-seqs": 8,
        "pipeline-parallel-size": 2,
        "enable-x": False,
        "enable-y": True,
        "enforce-eager": True,
    }


# -- keys


@pytest.mark.parametrize(
    ("typo", "remedy"),
    [
        ("gpu", "write gpus:"),
        ("prot", "write port:"),
        ("tensor-parallel-size", "write tensor_parallel_size:"),
        ("max_model_length", "write max_model_len:"),
        ("served-model-name", "write served_model_name:"),
        ("apikey", "write api_key:"),
        ("enviroment", "write environment:"),
        ("xyzzy", "delete the key; a vLLM flag belongs under args:"),
    ],
)
def test_a_typo_names_the_nearest_key(typo: str, remedy: str) -> None:
    finding = refused(**{typo: SECRET})
    assert (finding.code, finding.seen, finding.remedy) == ("service.unknown_key", f"unknown key '{typo}'", remedy)
    assert finding.expected == "keys among " + ", ".join(sorted(spec.KEYS))
    assert SECRET not in as_text([finding])


def test_keys_that_are_no_text() -> None:
    service, findings = spec.parse_service({**raw(), 8000: "x"})
    assert service is None
    assert [finding.seen for finding in findings] == ["unknown key '8000'"]


@pytest.mark.parametrize("entry", ["chat", None, 7, ["name"]])
def test_an_entry_that_is_no_mapping(entry: t.Any) -> None:
    services, findings = spec.parse_services([raw(), entry])
    assert [service.name for service in services] == ["chat"]
    assert findings[0].seen.startswith("entry 2 of vllm_services is ")


@pytest.mark.parametrize(("value", "kind"), [({}, "a mapping"), ("x", "a text"), (None, "null")])
def test_services_that_are_no_list(value: t.Any, kind: str) -> None:
    services, findings = spec.parse_services(value)
    assert services == []
    assert findings[0].seen == f"vllm_services is {kind}"


def test_missing_keys_are_named_by_position() -> None:
    _services, findings = spec.parse_services([{}])
    assert [(finding.code, finding.service, finding.seen) for finding in findings] == [
        ("service.missing_key", "entry 1", "name is missing"),
        ("service.missing_key", "entry 1", "model is missing"),
    ]


def test_all_findings_at_once() -> None:
    _service, findings = spec.parse_service({"name": "A", "port": 0, "gpu": 1})
    assert sorted(finding.code for finding in findings) == [
        "service.bad_value",
        "service.bad_value",
        "service.missing_key",
        "service.unknown_key",
    ]


def test_two_services_of_one_name() -> None:
    services, findings = spec.parse_services([raw(), raw(port=8001)])
    assert [service.port for service in services] == [8000]
    assert [finding.code for finding in findings] == ["service.duplicate_name"]


# -- secrets


@pytest.mark.parametrize(
    "keys",
    [
        {"api_key": [SECRET]},
        {"api_key": SECRET + "\n"},
        {"environment": {"A": [SECRET]}},
        {"environment": [f"A={SECRET}"]},
        {"environment": {f"A={SECRET}": ""}},
        {"secret_environment": {f"HF_TOKEN: {SECRET}": None}},
        {"secret_environment": f"HF_TOKEN={SECRET}"},
        {"secret_environment": {"HF_TOKEN": [SECRET]}},
        {"args": {"api-key": SECRET}},
        {"args": {f"--api-key={SECRET}": True}},
        {"args": {"hf-token": SECRET}},
        {"args": [f"--api-key={SECRET}"]},
        {"args": {"dtype": None, "x": SECRET}},
    ],
    ids=str,
)
def test_findings_hide_secrets(keys: dict[str, t.Any]) -> None:
    assert SECRET not in as_text([refused(**keys)])


@pytest.mark.parametrize(
    ("keys", "seen"),
    [
        ({"args": ["max-num-seqs"]}, "args is a list"),
        ({"args": "--max-num-seqs 4"}, "args is a text"),
        ({"args": {"port": 9}}, "args has 'port'"),
        ({"args": {"--api_key": SECRET}}, "args has 'api-key'"),
        ({"args": {f"api-key={SECRET}": True}}, "args has a name that is no flag (number 1)"),
        ({"args": {"dtype": None}}, "args has 'dtype' without a value"),
        ({"args": {"enforce-eager": "true"}}, "args has 'enforce-eager' with the text 'true'"),
        ({"args": {"x": 1, "--x": 2}}, "args has 'x' twice"),
        ({"environment": [f"A={SECRET}"]}, "environment is a list"),
        ({"environment": {f"A={SECRET}": ""}}, "environment has a name that is none of a variable (number 1)"),
        ({"environment": {"A": [SECRET]}}, "environment has A, which is a list"),
        ({"environment": {"A": f"{SECRET}\n"}}, "environment has A with a line break or a control character"),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "0"}}, "environment has CUDA_VISIBLE_DEVICES"),
        ({"secret_environment": {"HF_TOKEN": None}}, "secret_environment has HF_TOKEN, which is null"),
        ({"secret_environment": {"HF_TOKEN": "short"}}, "secret_environment has HF_TOKEN, which is too short"),
        ({"api_key": [SECRET]}, "api_key is a list"),
        ({"api_key": 1234567890}, "api_key is a number"),
        ({"api_key": "short"}, "api_key is too short"),
        ({"api_key": f"{SECRET}\n"}, "api_key is a value that is hidden"),
        ({"api_key": ""}, "api_key is empty"),
    ],
    ids=str,
)
def test_what_was_seen_is_said_without_the_value(keys: dict[str, t.Any], seen: str) -> None:
    assert refused(**keys).seen == seen


def test_all_that_is_wrong_within_a_key_at_once() -> None:
    wrong = {"tensor-parallel-size": 2, "max-num-seqs": 8, "api-key": SECRET, "dtype": None}
    _service, findings = spec.parse_service(raw(args=wrong, secret_environment={"A": "short", "VLLM_API_KEY": SECRET}))
    assert [finding.seen for finding in findings] == [
        "args has 'tensor-parallel-size'",
        "args has 'api-key'",
        "args has 'dtype' without a value",
        "secret_environment has A, which is too short",
        "secret_environment has VLLM_API_KEY",
    ]
    assert {finding.code for finding in findings} == {"service.bad_value"}
    assert SECRET not in as_text(findings)


def test_a_service_knows_the_names_of_its_secrets_only() -> None:
    service = parsed(api_key=SECRET, secret_environment={"HF_TOKEN": SECRET, "A": SECRET})
    assert service.secret_names == ("A", "HF_TOKEN", "VLLM_API_KEY")
    assert SECRET not in repr(service)


@pytest.mark.parametrize(
    ("entry", "secrets"),
    [
        ({}, {}),
        ({"api_key": ""}, {}),
        ({"api_key": "k"}, {"VLLM_API_KEY": "k"}),
        ({"secret_environment": {"A": 1, "B": True, "C": None}}, {"A": "1", "B": "1"}),
        ({"secret_environment": ["A=1"], "api_key": "k"}, {"VLLM_API_KEY": "k"}),
        ({"secret_environment": None}, {}),
    ],
)
def test_secrets_of(entry: dict[str, t.Any], secrets: dict[str, str]) -> None:
    assert spec.secrets_of(entry) == secrets


def test_fleet_wide_settings_obey_the_same_rules() -> None:
    assert spec.parse_setting("args", "vllm_default_args", {"max_num_seqs": 8}) == ({"max-num-seqs": 8}, [])
    value, findings = spec.parse_setting("args", "vllm_default_args", {"api-key": SECRET})
    assert value is None
    assert (findings[0].code, findings[0].seen) == ("plan.bad_setting", "vllm_default_args has 'api-key'")
    assert SECRET not in as_text(findings)
    _value, findings = spec.parse_setting("path", "vllm_root", "~/x")
    assert (findings[0].seen, findings[0].remedy) == ("vllm_root is '~/x'", "correct vllm_root")


@pytest.mark.parametrize("key", ["api_key", "secret_environment"])
def test_a_short_secret_would_tear_results_apart(key: str) -> None:
    short = refused(**{key: "1234567" if key == "api_key" else {"HF_TOKEN": "1234567"}})
    assert "at least 8 characters" in short.expected
    assert "1234567" not in str(short)


def test_an_entry_that_is_text_may_be_a_secret() -> None:
    _services, (finding,) = spec.parse_services(["api_key=sk-0123456789"])
    assert "sk-0123456789" not in str(finding)


@pytest.mark.parametrize("text", ["True", "false"])
def test_a_flag_that_a_template_made_text(text: str) -> None:
    assert "true or false for 'enforce-eager'" in refused(args={"enforce-eager": text}).expected
