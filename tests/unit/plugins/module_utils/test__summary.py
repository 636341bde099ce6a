# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _summary as summary

OK = {
    "kind": "chat",
    "asked": "Capital of France?",
    "answered": "Paris.",
    "ok": True,
    "seconds": 0.25,
    "first_token_seconds": 0.012,
}
BAD = {**OK, "ok": False, "reason": "answered 'Lyon', expected Paris"}
PLAN = {
    "engine": {"version": "0.33.0", "flavor": "cuda"},
    "runtime": "systemd",
    "services": [
        {
            "name": "chat",
            "model": "acme/tiny",
            "revision": "master",
            "path": "/data/tiny",
            "served_model_name": "tiny",
            "url": "http://127.0.0.1:8000",
            "public_url": "http://10.0.0.11:8000",
            "gpus": [{"index": 2, "uuid": "GPU-2", "name": "x"}],
        }
    ],
}
ARTIFACT = {
    "path": "/data/tiny",
    "commit": "0123456789abcdef",
    "bytes_total": 269_100_000,
    "bytes_fetched": 0,
    "files": ["x"],
}


def host(**keys: t.Any) -> dict[str, t.Any]:
    return summary.host_report(PLAN, **keys)


def report(*results: dict[str, t.Any], ok: bool = True) -> list[dict[str, t.Any]]:
    return [{"name": "chat", "ok": ok, "results": list(results), "version": "0.33.0"}]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.0 kB"),
        (1000, "1.0 kB"),
        (999_940, "999.9 kB"),
        (999_960, "1.0 MB"),
        (269_100_000, "269.1 MB"),
        (16.6e9, "16.6 GB"),
        (999.96e9, "1.0 TB"),
        (4e15, "4000.0 TB"),
    ],
)
def test_human_bytes(count: float, text: str) -> None:
    assert summary.human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 ms"), (0.0124, "12 ms"), (0.999, "999 ms"), (0.9996, "1.0 s"), (61.25, "61.2 s")]
)
def test_human_seconds(seconds: float, text: str) -> None:
    assert summary.human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("hosts", "text", "well"),
    [
        ({}, "0 hosts, 0 services: nothing to run", True),
        ({"a": {"services": []}}, "1 host, 0 services: nothing to run", True),
        ({"a": {"services": [{"ok": True}]}}, "1 host, 1 service: it answers", True),
        ({"a": {"services": [{"ok": True}]}, "b": {"services": [{"ok": True}]}},
         "2 hosts, 2 services: all answer", True),
        ({"a": {"services": [{"ok": True}, {"ok": False, "results": [BAD]}]}},
         "1 host, 2 services: 1 of 2 answer", False),
        ({"a": {"services": [{"ok": False, "state": "failed"}]}}, "1 host, 1 service: 0 of 1 answer", False),
        ({"a": {"services": [{"ok": False}]}}, "1 host, 1 service: none was asked", False),
        ({"b": {"services": [{"ok": True}], "failure": "x"}, "a": {"failure": "y"}},
         "2 hosts, 1 service: 1 of 1 answer; FAILED on a, b", False),
        ({"a": {"failure": "x"}, "b": {"unreachable": True}},
         "2 hosts, 0 services: FAILED on a; UNREACHABLE: b", False),
        ({name: {"unreachable": True} for name in "gfedcba"},
         "7 hosts, 0 services: UNREACHABLE: a, b, c, d, e and 2 more", False),
    ],
)  # fmt: skip
def test_headline(hosts: dict[str, t.Any], text: str, well: bool) -> None:
    assert summary.headline(hosts) == text
    assert summary.all_well(hosts) is well


def test_a_service_that_answers() -> None:
    made = host(artifacts=[ARTIFACT], reports=report({"kind": "models", "ok": True}, OK))
    assert summary.host_lines("gpu-01", made) == [
        "gpu-01  vLLM 0.33.0 (cuda) under systemd",
        "  chat  http://10.0.0.11:8000  ok, no key",
        "    model     acme/tiny @ 0123456789ab, 269.1 MB",
        "    GPUs      2 (GPU-2)",
        "    asked     Capital of France?",
        "    answered  Paris.",
        "    timing    first token 12 ms, whole answer 250 ms",
    ]
    assert made["services"][0]["artifact"] == {key: ARTIFACT[key] for key in ARTIFACT if key != "files"}


def test_what_was_fetched_is_said() -> None:
    made = host(artifacts=[{**ARTIFACT, "bytes_fetched": 1_000_000}])
    assert "269.1 MB, 1.0 MB fetched" in summary.host_lines("a", made)[2]


def test_a_wrong_answer() -> None:
    lines = summary.host_lines("a", host(reports=report(BAD, ok=False), failure="one\ntwo"))
    assert lines[1].endswith("WRONG ANSWER")
    assert lines[-4:] == [
        "    FAILED    chat: Capital of France?",
        "              answered 'Lyon', expected Paris",
        "  FAILED: one",
        "  two",
    ]


@pytest.mark.parametrize(
    ("states", "text"), [(None, "not probed"), ({"chat": {"state": "failed"}}, "failed"), ({"other": {}}, "not probed")]
)
def test_a_service_that_was_not_asked(states: t.Any, text: str) -> None:
    assert summary.host_lines("a", host(states=states))[1].endswith(text)
    assert summary.host_lines("a", host(states=states))[2].strip() == "model     acme/tiny @ master"


def test_a_host_without_a_plan() -> None:
    made = summary.host_report({}, failure="unreachable")
    assert made == {
        "engine": None, "runtime": None, "services": [], "artifacts": [], "failure": "unreachable", "unreachable": False
    }  # fmt: skip
    assert summary.host_lines("a", made) == ["a", "  FAILED: unreachable"]


def test_the_whole_text() -> None:
    text = summary.as_text(
        "Deployed",
        {"b": host(reports=report(OK)), "a": summary.host_report({})},
        {"ask it": "curl \\\n  x", "stop": 7, "nothing": ""},  # type: ignore[dict-item]
    )
    lines = text.splitlines()
    assert lines[:3] == ["Deployed: 2 hosts, 1 service: it answers", "", "a"]
    assert lines[-5:] == ["Next", "  ask it   curl \\", "             x", "  stop     7", "  nothing  "]
    assert "Next" not in summary.as_text("Deployed", {}, {})


def test_a_chat_and_its_stream_are_one_answer() -> None:
    plain = {**OK, "first_token_seconds": None, "seconds": 0.3}
    stream = {**OK, "kind": "stream"}
    lines = summary.host_lines("a", host(reports=report(plain, stream)))
    assert [line.split()[0] for line in lines[-3:]] == ["asked", "answered", "timing"]
    assert lines[-1].strip() == "timing    first token 12 ms, whole answer 250 ms, unstreamed 300 ms"
    broken = {**stream, "ok": False, "reason": "the stream ended without [DONE]"}
    lines = summary.host_lines("a", host(reports=report(plain, broken, ok=False)))
    assert lines[-3].strip() == "timing    whole answer 300 ms"
    assert lines[-2].strip().startswith("FAILED    stream:")


def fleet(count: int, **bad: dict[str, t.Any]) -> dict[str, t.Any]:
    """Hosts with two services each; ``bad`` replaces hosts by name."""
    good = {"url": "http://10.0.0.11:8000", "ok": True, "keyed": True}
    said = {"asked": "?", "answered": "Five."}
    results = [{"kind": "models", "ok": True, "seconds": 0.01}, {"kind": "key", "ok": True, "seconds": 0.02}]
    chat = [*results, {**OK, "first_token_seconds": None}, {**OK, "kind": "stream"}, {**OK, "kind": "vision"}]
    services = [
        {**good, "name": "qwen-vl", "model": "Qwen/Qwen2.5-VL-7B-Instruct", "results": chat},
        {**good, "name": "whisper", "model": "openai-mirror/whisper-large-v3-turbo", "keyed": False,
         "results": [results[0], {**said, "kind": "transcription", "ok": True, "seconds": 1.5}]},
    ]  # fmt: skip
    return {**{f"gpu-{n:02}": {"services": services} for n in range(1, count + 1)}, **bad}


def table_of(hosts: dict[str, t.Any], width: int = 120, **options: t.Any) -> list[str]:
    return summary.as_text("Validated", hosts, {}, width=width, **options).splitlines()


def test_few_hosts_are_blocks_and_many_a_table() -> None:
    assert "    asked     Capital of France?" in table_of(fleet(5))
    lines = table_of(fleet(6))
    assert lines[:2] == ["Validated: 6 hosts, 12 services: all answer", ""]
    assert len(lines) == 2 + 1 + 12
    assert "asked" not in "\n".join(lines)
    assert len(table_of(fleet(6), layout="blocks")) > 60
    assert len(table_of(fleet(1), layout="table")) == 5


def test_the_table() -> None:
    head, one, two = table_of(fleet(1), width=200, layout="table")[2:5]
    assert head.split("  ")[0] == "host  "[:4]
    assert head.split() == [
        "host", "service", "state", "model", "url", "models", "key", "chat", "stream", "vision", "audio", "first",
        "token", "total",
    ]  # fmt: skip
    assert one.split() == [
        "gpu-01", "qwen-vl", "ok", "Qwen/Qwen2.5-VL-7B-Instruct", "http://10.0.0.11:8000", "ok", "ok", "ok", "ok", "ok",
        "-", "12", "ms", "780", "ms",
    ]  # fmt: skip
    assert two.split()[5:] == ["ok", "none", "-", "-", "-", "ok", "-", "1.5", "s"]
    assert head.index("audio") == two.index("ok", two.index("none"))


@pytest.mark.parametrize(
    ("width", "has", "has_not"),
    [
        (200, ["model", "url", "Qwen/Qwen2.5", "http://"], ["probes"]),
        (120, ["model", "url", " Qwen2.5-VL-7B-Instruct"], ["probes", "http://", "Qwen/"]),
        (100, ["url", "vision", "10.0.0.11:8000"], ["probes", "http://", "whisper-large"]),
        (80, ["probes", "url", "5 ok", "2 ok, no key", "first  total"], ["model", "vision"]),
        (60, ["probes", "5 ok"], ["url", "model", "vision"]),
    ],
)
def test_the_table_fits(width: int, has: list[str], has_not: list[str]) -> None:
    lines = table_of(fleet(10), width=width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines[2:])
    for words in has:
        assert words in text, (words, text)
    for words in has_not:
        assert words not in text, (words, text)


def test_long_names_are_cut_at_last() -> None:
    hosts = {f"gpu-{'x' * 50}-{n}": host for n, host in enumerate(fleet(2).values())}
    lines = table_of(hosts, width=80, layout="table")
    assert max(map(len, lines)) <= 80
    assert lines[3].startswith("gpu-xxxxxxxxxxxxx...  qwen-vl")


def test_wide_characters_keep_the_columns() -> None:
    service = {"url": "http://a", "ok": True, "results": [{"kind": "models", "ok": True, "seconds": 1}], "keyed": True}
    hosts = {"a": {"services": [{**service, "name": name, "model": "m/m"} for name in ("模型", "abcd")]}}
    lines = table_of(hosts, layout="table")[3:5]
    assert lines[0].replace("模型", "abcd") == lines[1]


def test_what_went_wrong_is_below_the_table_once() -> None:
    lost = {"unreachable": True, "failure": "the host cannot be reached\n  seen:     no route"}
    wrong = host(reports=report(BAD, ok=False), failure="chat failed the chat probe\n  \x1b[31mseen")
    lines = table_of(fleet(5, **{"gpu-02": lost, "gpu-04": lost, "gpu-05": wrong}), layout="table")
    text = "\n".join(lines)
    assert lines[0].endswith("5 hosts, 5 services: 4 of 5 answer; FAILED on gpu-05; UNREACHABLE: gpu-02, gpu-04")
    assert [line.split()[:3] for line in lines if line.startswith("gpu-02  ")] == [["gpu-02", "-", "UNREACHABLE"]]
    assert [line.split()[2] for line in lines if line.startswith("gpu-05  ")] == ["WRONG"]
    assert "FAIL" in next(line for line in lines if line.startswith("gpu-05  "))
    assert text.count("the host cannot be reached") == 1
    at = lines.index("gpu-02, gpu-04:")
    assert lines[at + 1 : at + 3] == ["  the host cannot be reached", "    seen:     no route"]
    assert "\x1b" not in text


@pytest.mark.parametrize("layout", ["blocks", "table"])
def test_what_was_expected_and_what_to_do_have_lines_of_their_own(layout: str) -> None:
    failure = "acme/gone at /m: There is no acme/gone. Expected: a model of the hub. Remedy: " + "correct it " * 12
    lines = table_of({"a": {"failure": failure}, "b": {}}, layout=layout)
    at = next(number for number, line in enumerate(lines) if line.endswith("There is no acme/gone"))
    assert lines[at + 1] == "    expected: a model of the hub"
    assert lines[at + 2].startswith("    remedy:   correct it")
    assert lines[at + 3].startswith("              ")
    assert max(map(len, lines[at : at + 4])) <= 120


def test_many_long_problems_are_cut() -> None:
    failures = {f"gpu-{n:02}": {"failure": f"{n}\n" + "line\n" * 40} for n in range(1, 5)}
    text = "\n".join(table_of(failures, layout="table"))
    assert text.count("... 29 more lines in the output above") == 4
    few = "\n".join(table_of({"a": failures["gpu-01"]}, layout="table"))
    assert few.count("line") == 40


def test_states_of_services_that_were_not_asked() -> None:
    down = host(states={"chat": {"state": "failed"}}, failure="x")
    lines = table_of({"a": down, "b": {"failure": "no plan"}, "c": {}}, layout="table")
    assert [line.split()[:3] for line in lines[3:6]] == [["a", "chat", "failed"], ["b", "-", "FAILED"], ["c", "-", "-"]]


def test_colours() -> None:
    parts = summary.as_parts("x", fleet(1, b={"failure": "no"}), {"stop": "y"}, "table")
    assert [colour for _text, colour in parts] == ["red", None, None, "red", None, None, "red", None, None, None]
    parts = summary.as_parts("x", fleet(1), {})
    assert [colour for _text, colour in parts] == ["green", None, None, None]
    assert summary.as_parts("x", {}, {}, "table")[0][1] == "green"


UNREACHABLE = {"unreachable": True, "msg": "Task failed: Failed to connect to the host via ssh: refused"}


@pytest.mark.parametrize(
    ("steps", "seen"),
    [
        ([{}, UNREACHABLE], "Failed to connect to the host via ssh: refused"),
        ([{"changed": True}, {"unreachable": True, "results": [{"ok": 1}, UNREACHABLE]}], "Failed to connect"),
        ([{"failed": True, "connection_lost": "refused (for 60 s)", "msg": "long"}], "refused (for 60 s)"),
        ([{"unreachable": True}], "no answer"),
    ],
)
def test_a_step_that_did_not_reach_the_host(steps: list[t.Any], seen: str) -> None:
    made = host(failure="the plan has 1 error", steps=steps)
    assert made["unreachable"]
    assert made["failure"].startswith("the host cannot be reached\n  seen:     " + seen)
    assert "the plan" not in made["failure"]
    assert summary.host_lines("a", made)[-4].strip() == "UNREACHABLE: the host cannot be reached"


@pytest.mark.parametrize("steps", [[], [{}, None, "x"], [{"failed": True, "msg": "boom"}]])
def test_steps_that_reached_it(steps: list[t.Any]) -> None:
    made = host(failure="boom", steps=steps)
    assert (made["failure"], made["unreachable"]) == ("boom", False)


def test_a_host_that_was_lost_on_the_way() -> None:
    lines = table_of({"a": {"unreachable": True}}, layout="table")
    assert "a     -        UNREACHABLE" in lines
    assert "  the connection to the host was lost on the way" in lines
    assert not summary.all_well({"a": {"unreachable": True}})


def test_notes_stand_before_what_comes_next() -> None:
    parts = summary.as_parts("Deployed", fleet(1), {"ask it": "curl"}, notes=["gpu.a: \x1b[2Jseen\n (gpu-01)"])
    assert ("Warnings of the preflight\n  gpu.a: \ufffd[2Jseen\ufffd (gpu-01)", "yellow") in parts
    assert [text.split()[0] for text, _colour in parts if text][-2:] == ["Warnings", "Next"]
    assert summary.document("Deployed", fleet(1), "now", ["a"])["notes"] == ["a"]


def test_the_document() -> None:
    hosts = fleet(2, b={"failure": "no"}, c={"unreachable": True})
    made = summary.document("Validated", hosts, "2026-11-23T10:00:00Z")
    assert {key: value for key, value in made.items() if key != "hosts"} == {
        "schema": 1,
        "title": "Validated",
        "finished": "2026-11-23T10:00:00Z",
        "ok": False,
        "notes": [],
        "counts": {"hosts": 4, "hosts_failed": 1, "hosts_unreachable": 1, "services": 4, "services_ok": 4},
    }
    for one in made["hosts"].values():
        assert set(one) == {"engine", "runtime", "services", "artifacts", "failure", "unreachable"}
    assert made["hosts"]["gpu-01"]["services"] == hosts["gpu-01"]["services"]
    assert "lost on the way" in made["hosts"]["c"]["failure"]


def test_what_a_model_says_cannot_move_the_cursor() -> None:
    nasty = {**OK, "asked": "a\nb", "answered": "\x1b[2J\x1b]0;owned\x07Paris\r\n\u202e模型 é 👩\u200d🔬\u3000x"}
    text = summary.as_text("Deployed", {"a": host(reports=report(nasty), failure="log: \x1b[31mred")}, {})
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)
    assert "asked     a b" in text
    assert "Paris \ufffd模型 é 👩\u200d🔬 x" in text
    assert summary.printable("模型\u3000\xa0é\tx") == "模型\u3000\xa0é\tx"


def test_the_memory_of_a_service_stands_beside_what_was_reckoned() -> None:
    drift = {"what": "KV cache", "estimated": 24.58, "seen": 24.83, "unit": "GiB", "percent": -1.0}
    tokens = {**drift, "unit": "tokens"}
    service = {"name": "a", "url": "http://h:1", "model": "o/m", "ok": True, "keyed": True, "memory": [drift, tokens]}
    lines = [line.strip() for line in summary.service_lines(service)]
    assert lines[-1] == "memory    24.83 GiB of KV cache, reckoned were 24.58 GiB (-1 %)"
