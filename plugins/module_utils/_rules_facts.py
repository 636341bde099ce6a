# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""How rules read facts and plans: nothing is trusted to have its type, and nothing raises. Pure, no I/O."""

from __future__ import annotations

import math
import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, WARNING
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import Context, Failure, Unknown, Verdict

Map = t.Mapping[str, t.Any]
GIB = 2**30
MIB = 2**20
# vLLM's default (0.33; it was 0.9 before): a service that states no share takes this much of each of its cards.
DEFAULT_UTILIZATION = 0.92
# The first generation that the open kernel modules know.
OPEN_FROM = (7, 5)
# Data-centre and professional boards, by the names that nvidia-smi gives them.
_DATA_CENTRE = re.compile(
    r"\b(?:Tesla|[AHLVPT]\d{1,3}[A-Z]*|GH\d{3}|GB\d{3}|B\d{3}|Quadro|RTX (?:A\d{4}|\d{4} Ada|PRO))\b", re.IGNORECASE
)


def mapping(value: t.Any) -> Map:
    return value if isinstance(value, t.Mapping) else {}


def sequence(value: t.Any) -> list[t.Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def items(value: t.Any) -> list[Map]:
    """The mappings of a list; whatever else it holds is left out."""
    return [item for item in sequence(value) if isinstance(item, t.Mapping)]


def text(value: t.Any) -> str:
    """A text, or an empty one for whatever is none."""
    return value if isinstance(value, str) else ""


def texts(value: t.Any) -> list[str]:
    return [item for item in sequence(value) if isinstance(item, str)]


def number(value: t.Any) -> float | None:
    """A finite number; True is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: t.Any) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def amount(value: t.Any) -> int | None:
    """A count or a size; nothing has less than none of something."""
    found = whole(value)
    return None if found is None or found < 0 else found


def flag(value: t.Any) -> bool | None:
    return value if isinstance(value, bool) else None


def dig(value: t.Any, *keys: str) -> t.Any:
    """What stands below these keys, None where one of them is missing."""
    for key in keys:
        value = mapping(value).get(key)
    return value


def version(value: t.Any) -> tuple[int, ...]:
    """``580.95.05`` as (580, 95, 5), and ``28.5.1-rc1`` as (28, 5, 1); empty where it is none."""
    match = re.match(r"v?(\d{1,9}(?:\.\d{1,9}){0,5})(?!\d)", text(value))
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def dotted(numbers: t.Iterable[int]) -> str:
    return ".".join(str(part) for part in numbers)


def size(value: float) -> str:
    """A size as a person reads it: 1.5 TiB, 21 GiB, 300 MiB."""
    for unit, factor in (("TiB", 2**40), ("GiB", GIB)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value / MIB:.0f} MiB"


def listed(words: t.Iterable[t.Any], most: int = 8) -> str:
    """``a, b and 3 more``: a message that a person reads to its end."""
    shown = [str(word) for word in words]
    if len(shown) > most:
        return f"{', '.join(shown[:most])} and {len(shown) - most} more"
    return ", ".join(shown)


# ---- the plan


def services(context: Context) -> list[Map]:
    return items(mapping(context.plan).get("services"))


def service_name(service: Map) -> str:
    return text(service.get("name"))


def contained(context: Context) -> bool:
    """Whether services run in Docker; a bare host needs none."""
    return mapping(context.plan).get("runtime") == "compose"


def on_gpus(context: Context) -> bool:
    """Whether the host's engine computes on GPUs; what ails a card concerns no other host."""
    return mapping(context.plan).get("device") == "cuda"


def nvidia(context: Context) -> Map:
    return mapping(mapping(context.facts).get("nvidia"))


def docker(context: Context) -> Map:
    return mapping(dig(nvidia(context), "container", "docker"))


def security_options(context: Context) -> list[str] | None:
    """What Docker says of users, SELinux and AppArmor; None where there is no Docker that says anything."""
    told = docker(context).get("security_options")
    return texts(told) if isinstance(told, list) and text(docker(context).get("server_version")) else None


def setting(context: Context, name: str) -> t.Any:
    return mapping(context.settings).get(name)


def argument(service: Map, name: str) -> str:
    """The value of a flag in the service's command line, an empty text where it is not set."""
    words = texts(service.get("arguments")) or texts(service.get("command"))
    for position, word in enumerate(words):
        if word == f"--{name}":
            return words[position + 1] if position + 1 < len(words) else ""
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return ""


def utilization(service: Map) -> float:
    """The share of each card that the engine takes."""
    stated: list[t.Any] = [service.get("gpu_memory_utilization"), argument(service, "gpu-memory-utilization")]
    for value in stated:
        try:
            share = None if isinstance(value, bool) else number(float(value))
        except (TypeError, ValueError, OverflowError):
            continue
        if share is not None and 0 < share <= 1:
            return share
    return DEFAULT_UTILIZATION


# ---- words


def short_image(service: Map) -> str:
    """An image as a person reads it: of a digest the beginning."""
    name, separator, digest = text(service.get("image")).partition("@")
    return f"{name}{separator}{digest[:19]}"


def _red_hat(context: Context) -> bool:
    system = mapping(mapping(context.facts).get("os"))
    words = f"{text(system.get('id'))} {text(system.get('id_like'))}".split()
    return bool(set(words) & {"rhel", "fedora", "centos", "rocky", "almalinux", "ol", "amzn"})


def upgrade(packages: str, context: Context) -> str:
    """The command that upgrades packages that are there, in the words of the host's distribution."""
    return f"dnf upgrade {packages}" if _red_hat(context) else f"apt install --only-upgrade {packages}"


def install_driver(branch: int, context: Context) -> str:
    """The command that installs a branch of the driver: from Ubuntu's repository, else from NVIDIA's.

    The open kernel modules begin with Turing, and are what NVIDIA recommends from there on (NVIDIA Driver Installation
    Guide: Kernel Modules, Version Locking).
    """
    capabilities = [version(card.get("compute_capability")) for card in cards(context)]
    is_open = not any(capability and capability < OPEN_FROM for capability in capabilities)
    package = "nvidia-open" if is_open else "cuda-drivers"
    if _red_hat(context):
        if not _has_modules(context):
            return f"dnf versionlock add '*nvidia*{branch}*' && dnf install {package}"
        stream = f"{branch}-{'open' if is_open else 'dkms'}"
        return (
            f"dnf module reset nvidia-driver && dnf module enable nvidia-driver:{stream} && "
            f"dnf install --allowerasing {package}"
        )
    if text(dig(context.facts, "os", "id")) == "debian":
        return f"apt install nvidia-driver-pinning-{branch} && apt install {package}"
    return f"apt install nvidia-driver-{branch}-server{'-open' if is_open else ''}"


def _has_modules(context: Context) -> bool:
    """Whether the distribution knows streams of modules: Red Hat's up to 9, and Amazon's."""
    system = mapping(mapping(context.facts).get("os"))
    numbers = version(system.get("version_id"))
    return text(system.get("id")) != "fedora" and not (numbers and 10 <= numbers[0] < 2000)


def install_fabric_manager(context: Context) -> str:
    """In the driver's own version, the only one that works beside it."""
    driver = text(nvidia(context).get("driver_version"))
    numbers = version(driver)
    if _red_hat(context):
        # It was renamed with branch 580.
        name = "nvidia-fabric-manager" if numbers and numbers < (580,) else "nvidia-fabricmanager"
        return f"dnf install {name}{f'-{driver}' if numbers else ''}"
    return f"apt install nvidia-fabricmanager{f'-{numbers[0]}' if numbers else ''}"


def hold(packages: t.Iterable[str], context: Context) -> str:
    """The command that keeps packages as they are."""
    words = " ".join(f"'{package}'" for package in packages)
    return f"dnf versionlock add {words}" if _red_hat(context) else f"apt-mark hold {words}"


def kernel_argument(word: str, context: Context) -> str:
    """How a word gets onto the kernel's command line."""
    if _red_hat(context):
        return f"grubby --update-kernel=ALL --args={word}"
    return f"add {word} to GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub"


# ---- cards


def cards(context: Context) -> list[Map]:
    return items(mapping(context.facts).get("gpus")) if on_gpus(context) else []


def same_card(wanted: Map, card: Map) -> bool:
    """By UUID where both have one, else by index."""
    left, right = text(wanted.get("uuid")), text(card.get("uuid"))
    if left and right:
        return left == right
    index = whole(wanted.get("index"))
    return index is not None and index == whole(card.get("index"))


def cards_of(service: Map, context: Context) -> list[Map]:
    """The host's cards that the plan gives to a service."""
    wanted = items(service.get("gpus"))
    return [card for card in cards(context) if any(same_card(one, card) for one in wanted)]


def users_of(card: Map, context: Context) -> list[str]:
    """The services that the plan puts on a card; none for a spare one."""
    return [
        service_name(service)
        for service in services(context)
        if any(same_card(one, card) for one in items(service.get("gpus")))
    ]


def index_of(card: Map) -> str:
    index = whole(card.get("index"))
    return "?" if index is None else str(index)


def label(card: Map, context: Context) -> str:
    """``GPU 3 (NVIDIA H100 80GB HBM3, used by chat)``."""
    users = users_of(card, context)
    facts = [text(card.get("name")), f"used by {listed(users)}" if users else "spare"]
    return f"GPU {index_of(card)} ({', '.join(fact for fact in facts if fact)})"


def is_data_centre(card: Map) -> bool:
    name = text(card.get("name"))
    return bool(_DATA_CENTRE.search(name)) and "geforce" not in name.lower()


def is_virtual(card: Map) -> bool:
    """Whether it is a part of a card that a hypervisor gives away (vGPU): ``NVIDIA A40-48Q``."""
    return bool(re.search(r"-\d{1,3}[ABCQ]$", text(card.get("name"))))


def bus(value: t.Any) -> str:
    """A PCI address as all sources agree on it: ``00000000:1B:00.0`` and ``0000:1b:00`` are ``0000:1b:00``."""
    match = re.fullmatch(
        r"(?:PCI:)?([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})(?:\.[0-9a-f])?", text(value).strip(), re.IGNORECASE
    )
    return f"{int(match[1], 16):04x}:{match[2]}:{match[3]}".lower() if match else ""


# ---- asking


Look = t.Callable[[Map], t.Optional[Failure]]


def of_cards(context: Context, fact: str, known: t.Callable[[Map], bool], look: Look, chosen: bool = False) -> Verdict:
    """Look at each card that tells the fact; unknown where none that matters does.

    With ``chosen`` only cards that the plan uses are looked at: a spare card that is slow hurts nobody.
    """
    if not on_gpus(context):
        return None
    matter = [card for card in cards(context) if not chosen or users_of(card, context)]
    found = [failure for failure in (look(card) for card in matter if known(card)) if failure]
    if not found and any(not known(card) for card in matter):
        silent = [card for card in matter if not known(card)]
        return Unknown(f"GPU {listed(index_of(card) for card in silent)}: {fact} is not told")
    return found


def graded(card: Map, context: Context) -> str:
    """An error on a card that the plan uses, a warning on a spare one."""
    return ERROR if users_of(card, context) else WARNING


def reset(card: Map) -> str:
    return f"stop what uses the card, then 'nvidia-smi --gpu-reset -i {index_of(card)}' (or reboot the host)"
