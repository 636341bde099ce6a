# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What decides the memory of models, for the module vllm_model_info: config, weights, sizes; errors as data."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _model_weights, _safetensors
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import (
    DEFAULT_REVISION,
    HubClient,
    check_model,
    check_revision,
    parse_endpoint,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub_options import connection_argument_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import is_weights
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import (
    CONFIG_MAX,
    CONFIG_NAME,
    Model,
    read_config,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_files import (
    Files,
    HubFiles,
    artifact_files,
    loose_files,
    missing_bytes,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import RetryPolicy

if t.TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule
    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry

MODELS_AT_ONCE = 4
FILES_AT_ONCE = 8
SHARDS_MAX = 1024

FIRST_BYTES = 64 * 1024
"""Asked for of each safetensors file at first: enough for the header of most."""

_PROCESSOR_NAME = "preprocessor_config.json"
_QUANTIZER_NAME = "hf_quant_config.json"
_PROCESSOR_MAX = 256 * 1024
_NO_HUB = ("hub.unreachable", "hub.unavailable", "hub.busy", "hub.tls")

# Keys of config.json that hold no size and can be long.
_DROPPED = frozenset(
    {
        "auto_map",
        "begin_suppress_tokens",
        "chat_template",
        "forced_decoder_ids",
        "id2label",
        "ignore",
        "label2id",
        "lang_to_id",
        "median_filter_width",
        "modules_to_not_convert",
        "rope_scaling_factors",
        "long_factor",
        "short_factor",
        "suppress_tokens",
        "suppress_tokens_at_begin",
        "task_specific_params",
        "task_to_id",
    }
)
_DEPTH_MAX = 6
_ITEMS_MAX = 4096


def argument_spec() -> dict[str, t.Any]:
    """The argument spec of vllm_model_info."""
    return {
        "models": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {
                "model": {"type": "str", "required": True},
                "revision": {"type": "str", "default": DEFAULT_REVISION},
                "path": {"type": "path"},
                "include": {"type": "list", "elements": "str", "default": []},
                "exclude": {"type": "list", "elements": "str", "default": []},
            },
        },
        "model_root": {"type": "path"},
        **connection_argument_spec(),
    }


def run(module: AnsibleModule) -> dict[str, t.Any]:
    """Do what the options of vllm_model_info say. Raises FleetError for options that cannot be."""
    params: dict[str, t.Any] = module.params
    if not params["timeout"] > 0:
        raise FleetError("hub.bad_timeout", f"timeout is {params['timeout']}", "more than 0 seconds", "Correct timeout")
    client = HubClient(
        parse_endpoint(params["endpoint"]),
        params["token"],
        params["timeout"],
        RetryPolicy(attempts=3, longest_wait=5.0),
    )
    wanted: dict[str, dict[str, t.Any]] = {}
    for item in params["models"]:
        name = f"{check_model(item['model'])}@{check_revision(item['revision'])}"
        if params["model_root"] and not item["path"]:
            item = {**item, "path": f"{params['model_root'].rstrip('/')}/{item['model'].split('/')[1]}"}
        wanted.setdefault(name, item)
    with concurrent.futures.ThreadPoolExecutor(MODELS_AT_ONCE) as pool:
        found = pool.map(lambda item: describe(client, item), wanted.values())
        models = dict(zip(wanted, found))
    return {"changed": False, "models": models, "requests": client.requests}


def empty_entry() -> dict[str, t.Any]:
    """The entry of a model of which nothing is known."""
    keys = ("commit", "source", "path", "bytes_total", "artifact_bytes", "missing_bytes", "files", "config", "weights",
            "error")  # fmt: skip
    return dict.fromkeys(keys)


def describe(client: HubClient, item: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The entry of one model. What is wrong with it or the hub is its ``error``."""
    try:
        files = _files(client, item)
    except FleetError as exc:
        return {**empty_entry(), "path": item.get("path"), "error": exc.as_result()}
    return placed_entry(files, item.get("path"))


def placed_entry(files: Files, path: str | None) -> dict[str, t.Any]:
    """The entry of a model whose files are listed, and what of them ``path`` lacks; unknown without the hub's list."""
    entry = listed_entry(files)
    entry["path"] = path
    if files.source == "artifact":
        entry["missing_bytes"] = 0
    elif path and files.source == "hub":
        entry["missing_bytes"] = missing_bytes(path, files.entries.values())
    return entry


def listed_entry(files: Files) -> dict[str, t.Any]:
    """The entry of a model whose files are listed."""
    entry = empty_entry()
    entry.update(commit=files.commit, source=files.source)
    entry["artifact_bytes"] = sum(one.size for one in files.entries.values())
    # What the engine would load: whether it is pickles is for the plan to say.
    entry["files"] = sorted(name for name in files.entries if is_weights(name))[:SHARDS_MAX]
    try:
        entry.update(read_model(files))
    except FleetError as exc:
        entry["error"] = exc.as_result()
    return entry


def _files(client: HubClient, item: t.Mapping[str, t.Any]) -> Files:
    """The artifact's own directory where it is complete, else the hub, else the directory as it lies."""
    model, revision, path = item["model"], item["revision"], item.get("path")
    if path:
        own = artifact_files(path, model, revision)
        if own is not None:
            return own
    try:
        return HubFiles(client, model, revision, item["include"], item["exclude"])
    except FleetError as exc:
        loose = loose_files(path) if path and exc.code in _NO_HUB else None
        if loose is None:
            raise
        return loose


def read_model(files: Files) -> dict[str, t.Any]:
    """``config``, ``weights`` and ``bytes_total`` of a model. Raises FleetError where its memory cannot be reckoned."""
    shards = weight_files(files)
    if CONFIG_NAME not in files.entries:
        raise _no_config(files)
    config = shortened(_document(files, CONFIG_NAME, CONFIG_MAX))
    if not isinstance(config, dict):
        raise FleetError(
            "model.bad_config",
            f"{CONFIG_NAME} is no JSON object",
            "the config of a model",
            "Ask the owner of the repository to repair it",
        )
    if config.get("vision_config") and _PROCESSOR_NAME in files.entries:
        config["image_processor"] = _image_processor(files)
    if not config.get("quantization_config") and _QUANTIZER_NAME in files.entries:
        # As vLLM does: NVIDIA's tool has told it there before it did in config.json.
        told = shortened(_optional(files, _QUANTIZER_NAME)).get("quantization")
        config["quantization_config"] = {"quant_method": "modelopt", **told} if isinstance(told, dict) else None
    model = read_config(config)
    weights = read_weights(files, model, shards)
    return {
        "config": config,
        "weights": weights.as_dict(),
        "bytes_total": sum(entry.size for entry in shards),
    }


def weight_files(files: Files) -> list[Entry]:
    """The safetensors files that an engine loads: those of the index, else those of the top directory.

    Copies of the same weights for other software (``consolidated*``, ``original/``) are left out, as vLLM does.
    """
    if _safetensors.INDEX_NAME in files.entries:
        body = _whole(files, _safetensors.INDEX_NAME, _safetensors.INDEX_MAX)
        names = list(_safetensors.parse_index(body).files)
        missing = [name for name in names if name not in files.entries]
        if missing:
            raise FleetError(
                "model.missing_file",
                f"{_safetensors.INDEX_NAME} names {len(missing)} files that are not there, such as {missing[0]}",
                "every file of the index",
                "Correct include and exclude, or ask the owner of the repository to complete it",
            )
    else:
        every = [name for name in files.entries if name.endswith(".safetensors") and "/" not in name]
        names = [name for name in every if not name.startswith("consolidated")] or every
    if not names:
        raise _no_weights(files)
    if len(names) > SHARDS_MAX:
        raise FleetError(
            "model.too_large",
            f"The weights are in {len(names)} files",
            f"at most {SHARDS_MAX} files",
            "Set tensor_parallel_size and max_model_len yourself; this repository is out of the ordinary",
        )
    return [files.entries[name] for name in sorted(names)]


def read_weights(files: Files, model: Model, shards: t.Sequence[Entry]) -> _model_weights.Weights:
    """The weights by group, from the headers of all files."""
    with concurrent.futures.ThreadPoolExecutor(min(FILES_AT_ONCE, len(shards))) as pool:
        headers = list(pool.map(lambda entry: _header(files, entry), shards))
    return _model_weights.from_tensors(model, (tensor for header in headers for tensor in header))


def _header(files: Files, entry: Entry) -> list[_safetensors.Tensor]:
    """The tensors of one file: its first bytes, and the rest of the header where it is longer."""
    head = files.read(entry, 0, min(FIRST_BYTES, entry.size))
    with _named(entry):
        end = _safetensors.LENGTH_BYTES + _safetensors.header_length(head, entry.size)
    if end > len(head):
        head += files.read(entry, len(head), end)
    with _named(entry):
        return _safetensors.parse_header(head[_safetensors.LENGTH_BYTES : end], entry.size)


@contextlib.contextmanager
def _named(entry: Entry) -> t.Iterator[None]:
    try:
        yield
    except FleetError as exc:
        raise FleetError(exc.code, f"{entry.path}: {exc.seen}", exc.expected, exc.remedy) from None


def shortened(value: t.Any, depth: int = 0) -> t.Any:
    """A config without what holds no size: a module's answer shall be short, whatever a repository holds."""
    if isinstance(value, dict):
        if depth >= _DEPTH_MAX:
            return {}
        kept = [(key, one) for key, one in value.items() if key not in _DROPPED][:_ITEMS_MAX]
        return {key[:200]: shortened(one, depth + 1) for key, one in kept}
    if isinstance(value, list):
        return [shortened(one, depth + 1) for one in value[:_ITEMS_MAX]] if depth < _DEPTH_MAX else []
    return value[:200] if isinstance(value, str) else value


def _image_processor(files: Files) -> dict[str, t.Any]:
    """How far an image is scaled down, where the processor's config says so; nothing where it cannot be read."""
    values = _optional(files, _PROCESSOR_NAME)
    size = values.get("size")
    pixels = values.get("max_pixels") or (size.get("longest_edge") if isinstance(size, dict) else None)
    # Where the size is one of a side, it is far below any number of pixels.
    usable = isinstance(pixels, int) and not isinstance(pixels, bool) and 2**16 <= pixels <= 2**40
    return {"max_pixels": pixels} if usable else {}


def _optional(files: Files, name: str) -> dict[str, t.Any]:
    """A JSON object beside the config; empty where it cannot be read."""
    try:
        values = _document(files, name, _PROCESSOR_MAX)
    except FleetError:
        return {}
    return values if isinstance(values, dict) else {}


def _document(files: Files, name: str, limit: int) -> t.Any:
    body = _whole(files, name, limit)
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError included; nested without end
        raise FleetError(
            "model.bad_config", f"{name} is not JSON", "JSON", "Ask the owner of the repository to repair it"
        ) from None


def _whole(files: Files, name: str, limit: int) -> bytes:
    entry = files.entries[name]
    if entry.size > limit:
        raise FleetError(
            "model.too_large",
            f"{name} has {entry.size} bytes",
            f"at most {limit} bytes",
            "Use another revision of the model; no engine's config is as long",
        )
    return files.read(entry, 0, entry.size)


def _no_config(files: Files) -> FleetError:
    mistral = "params.json" in files.entries
    return FleetError(
        "model.no_config",
        "The model has no config.json" + (", but a params.json in Mistral's own format" if mistral else ""),
        "a config.json, as transformers and vLLM write it",
        "Correct include and exclude if they leave it out; else set tensor_parallel_size and max_model_len yourself",
    )


def _no_weights(files: Files) -> FleetError:
    gguf = [name for name in files.entries if name.lower().endswith(".gguf")]
    if gguf:
        return FleetError(
            "model.gguf",
            f"The weights are in GGUF ({gguf[0]}), which holds no safetensors header",
            "safetensors",
            "Set tensor_parallel_size and max_model_len yourself, or use a repository with safetensors",
        )
    return FleetError(
        "model.no_weights",
        "The model has no safetensors file in its top directory",
        "weights as safetensors",
        "Correct include and exclude if they leave them out, or use a repository that has them",
    )
