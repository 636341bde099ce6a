# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Describe the parser of ``vllm serve`` as JSON: ``vllm_parser.py [SOURCES]``.

With SOURCES, the Python files of an unpacked wheel, the parser is built from them without what vLLM depends on: modules
that are not installed (torch, transformers, compiled kernels) are replaced by stand-ins, whose names can be looked up,
called and written into annotations, and nothing more. vLLM's own documentation builds its pages of arguments in the
same way. Without SOURCES the vLLM of this interpreter is described: what the stand-ins are checked against.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
import typing as t
from pathlib import Path

# Modules whose presence says that this is a machine of that kind.
ABSENT = {"amdsmi", "habana_frameworks", "libtpu", "neuronxcc", "torch_neuronx", "torch_npu", "torch_xla", "tpu_info"}
OWN = "vllm"
failed: dict[str, str] = {}


class _Meta(type):
    """Of a class that stands for anything: a type in annotations, a function, a decorator, a value that is false."""

    def __getattr__(cls, name: str) -> t.Any:
        if name.startswith("__"):
            if name == "__version__":
                return "99.0.0"
            raise AttributeError(name)
        value = stand_in(name)
        setattr(cls, name, value)
        return value

    def __call__(cls, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if not cls.__dict__.get("_stands_in"):
            return super().__call__()
        if len(args) == 1 and not kwargs and isinstance(args[0], (types.FunctionType, type)):
            return args[0]
        return stand_in(cls.__name__)

    def __getitem__(cls, _key: t.Any) -> t.Any:
        return cls

    def __iter__(cls) -> t.Iterator[t.Any]:
        return iter(())

    def __bool__(cls) -> bool:
        return False

    def __index__(cls) -> int:
        return 0

    def __enter__(cls) -> t.Any:
        return cls

    def __exit__(cls, *_exc: object) -> None:
        return None

    def __lt__(cls, _other: t.Any) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __contains__ = __lt__

    def __add__(cls, _other: t.Any) -> t.Any:
        return cls

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __truediv__ = __mod__ = __pow__ = __add__
    __and__ = __lshift__ = __rshift__ = __add__


class StandIn(metaclass=_Meta):
    _stands_in = False

    def __init__(self, *_args: t.Any, **_kwargs: t.Any) -> None:
        pass

    def __init_subclass__(cls, **_kwargs: t.Any) -> None:
        super().__init_subclass__()

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: t.Any, _handler: t.Any) -> t.Any:
        from pydantic_core import core_schema

        return core_schema.any_schema()


def stand_in(name: str) -> t.Any:
    return _Meta(name, (StandIn,), {"_stands_in": True, "__module__": "stand_in"})


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> t.Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        value = "99.0.0" if name == "__version__" else stand_in(name)
        setattr(self, name, value)
        return value


class _Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last among the finders: whatever nobody else has."""

    def find_spec(self, name: str, path: t.Any = None, target: t.Any = None) -> t.Any:
        # So do those of the standard library that this system does not have.
        if name.partition(".")[0] in ABSENT | sys.stdlib_module_names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        if spec.name == "regex":
            import re

            module = types.ModuleType("regex")
            module.__dict__.update(re.__dict__)
            return module
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Own(importlib.abc.MetaPathFinder):
    """vLLM's own modules: what one that cannot be executed to its end lacks, stand-ins give."""

    def find_spec(self, name: str, path: t.Any = None, target: t.Any = None) -> t.Any:
        if name.partition(".")[0] != OWN:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Tolerant(spec.loader.name, spec.loader.path)
        return spec


class _Tolerant(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        try:
            super().exec_module(module)
        except Exception as exc:  # noqa: BLE001  # whatever a stand-in made of it
            failed[module.__name__] = f"{type(exc).__name__}: {exc}"[:200]
            module.__class__ = _Module


def build() -> argparse.ArgumentParser:
    """The parser of the subcommand, from the subcommand itself."""
    serve = importlib.import_module("vllm.entrypoints.cli.serve")
    flexible = _flexible_parser()
    top = flexible(prog="vllm")
    subparsers = top.add_subparsers(dest="subparser")
    parser = serve.cmd_init()[0].subparser_init(subparsers)
    if not isinstance(parser, argparse.ArgumentParser):
        raise SystemExit(f"vllm serve has no parser of its own here: {parser!r}")
    return parser


def _flexible_parser() -> t.Any:
    for name in ("vllm.utils.argparse_utils", "vllm.utils"):
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(name), "FlexibleArgumentParser", None)
            if isinstance(found, type) and issubclass(found, argparse.ArgumentParser):
                return found
    raise SystemExit("no FlexibleArgumentParser in these sources")


def describe(parser: argparse.ArgumentParser) -> dict[str, dict[str, t.Any]]:
    """``{"tensor-parallel-size": {"options": [...], "kind": "int", ...}}``, positional arguments left out."""
    deprecated: set[argparse.Action] = getattr(parser, "_deprecated", set())
    described: dict[str, dict[str, t.Any]] = {}
    for action in parser._actions:
        longs = [option for option in action.option_strings if option.startswith("--")]
        if not longs or isinstance(action, argparse._HelpAction):
            continue
        name = longs[0].lstrip("-")
        options = sorted(set(parser_options(parser, action)) - {f"--{name}"})
        entry: dict[str, t.Any] = {"options": options, **_value(action)}
        if action in deprecated or getattr(action, "deprecated", False):
            entry["deprecated"] = True
        entry["help"] = (action.help if isinstance(action.help, str) else "") or ""
        entry["action"] = type(action).__name__
        described[name] = entry
    return described


def parser_options(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    """Every spelling that reaches this action; some are hidden from the action's own list, and so from the help."""
    return [option for option, found in parser._option_string_actions.items() if found is action]


def _value(action: argparse.Action) -> dict[str, t.Any]:
    """What it takes: kind, choices, nargs. An action without a value has the kind bool (negatable) or flag."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return {"kind": "bool"}
    if action.nargs == 0:
        return {"kind": "flag"}
    kind, none = _kind(action.type)
    value: dict[str, t.Any] = {"kind": kind}
    if none:
        value["none"] = True
    if action.choices is not None:
        value["choices"] = sorted({str(choice) for choice in action.choices if choice is not None})
    if action.nargs is not None:
        value["nargs"] = str(action.nargs)
    return value


# Functions of vLLM that read a value, by what a user may write; "text" takes anything.
KINDS = {
    "bool": "text",
    "from_cli": "json",
    "from_json": "json",
    "human_readable_int": "size",
    "human_readable_int_or_auto": "size-auto",
    "loads": "json",
    "parse_dataclass": "json",
    "parse_reasoning_parser": "text",
    "union_dict_and_str": "text",
    # Written in place, all of them text that is brought to lower case, or parted at commas.
    "<lambda>": "lower",
}


def _kind(reader: t.Any) -> tuple[str, bool]:
    """The kind of value that ``reader`` (argparse's ``type=``) reads, and whether it takes "None" for no value."""
    if reader is None or reader is str:
        return "text", False
    if reader in (int, float):
        return str(reader.__name__), False
    name = getattr(reader, "__name__", "")
    if isinstance(reader, types.FunctionType) and "return_type" in reader.__code__.co_freevars:
        # A wrapper of vLLM around the reader proper.
        cells = dict(zip(reader.__code__.co_freevars, reader.__closure__ or (), strict=True))
        inner, none = _kind(cells["return_type"].cell_contents)
        # Before 0.10 also key=value,key=value.
        inner = "text" if inner == "json" and "nullable_kvs" in reader.__globals__ else inner
        return inner, none or name == "_optional_type"
    return KINDS.get(name, f"?{name}"), False


def environment() -> list[str]:
    envs = importlib.import_module("vllm.envs")
    return sorted(envs.environment_variables)


def messages(root: Path) -> list[str]:
    """Texts of the sources that speak of a deprecated flag, in the order of the files."""
    found: dict[str, None] = {}
    for path in sorted(
        [
            *root.glob("vllm/engine/arg_utils.py"),
            *root.glob("vllm/entrypoints/**/*cli_args.py"),
            *root.glob("vllm/config/*.py"),
            *root.glob("vllm/config.py"),
        ]
    ):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "deprecated" in node.value.lower():
                found[" ".join(node.value.split())] = None
    return list(found)


def main(arguments: list[str]) -> int:
    # Some releases log to standard output while they are imported.
    output = os.dup(1)
    os.dup2(2, 1)
    # The descriptions are only read when help is wanted; beside "serve", --help prints it or leaves --model out.
    sys.argv = ["vllm", "--help"]
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_PLUGINS"] = ""
    if arguments:
        root = Path(arguments[0]).resolve()
        sys.path.insert(0, str(root))
        sys.meta_path.insert(0, _Own())
        sys.meta_path.append(_Missing())
        # No device is found here, and a configuration wants the name of one.
        importlib.import_module("vllm.platforms.interface").UnspecifiedPlatform.device_type = "cuda"
    try:
        parser = build()
    finally:
        for name, why in sorted(failed.items()):
            print(f"{name} was not executed to its end: {why}", file=sys.stderr)
    module = importlib.import_module("vllm.version")
    answer = {
        "version": module.__version__,
        "flags": describe(parser),
        "environment": environment(),
        "messages": messages(Path(str(module.__file__)).parent.parent),
        "failed": failed,
    }
    with os.fdopen(output, "w", encoding="utf-8") as stream:
        json.dump(answer, stream, indent=1, sort_keys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
