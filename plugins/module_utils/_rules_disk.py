# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.
"""Preflight rules about file systems: space by file system, inodes, and what they are mounted as. Pure, no I/O."""

from __future__ import annotations

import posixpath
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, INFO, WARNING
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    Rule,
    Unknown,
    Verdict,
    rules_into,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_driver import image_facts
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_facts import (
    GIB,
    Map,
    amount,
    contained,
    dig,
    docker,
    items,
    listed,
    mapping,
    on_gpus,
    service_name,
    services,
    short_image,
    size,
    text,
    texts,
    whole,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

RULES: list[Rule] = []
rule = rules_into(RULES)

# Estimates, which a message calls so. An image of vLLM 0.33 has 20.4 GiB unpacked, and its layers lie beside it while
# it is pulled; one for the CPU has no CUDA libraries; an engine's venv holds torch with its CUDA libraries; compiled
# kernels and graphs of a service.
IMAGE_BYTES = {"cuda": 32 * GIB, "cpu": 8 * GIB}
ENGINE_BYTES = {"cuda": 12 * GIB, "cpu": 4 * GIB}
CACHE_BYTES = 2 * GIB
# What is left after a deploy should take logs and the next small change.
SPARE_BYTES = 5 * GIB
SPARE_SHARE = 0.03
ENOUGH_INODES, FEWEST_INODES = 20_000, 1_000
DISTRIBUTED = ("lustre", "ceph", "gpfs", "beegfs", "wekafs", "fuse.juicefs", "fuse.glusterfs")
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", *DISTRIBUTED)
VOLATILE = ("tmpfs", "ramfs")
POOLED = ("btrfs", "zfs")
# What Docker calls containerd's way of keeping images, from Docker 29 on, and where that keeps them.
SNAPSHOTTER, CONTAINERD_ROOT = "overlayfs", "/var/lib/containerd"
KEYS = {
    "free_inodes": "the number of free inodes",
    "read_only": "the mode (read-only or not)",
    "options": "the mount options",
    "type": "the type of the file system",
}


class Need(t.NamedTuple):
    """So many bytes below a path; ``estimate`` where the size is none that was read."""

    path: str
    bytes: int
    what: str
    estimate: bool = False


def artifacts(context: Context) -> list[Map]:
    return items(mapping(context.plan).get("artifacts"))


def _model(artifact: Map, context: Context) -> Map:
    """What was read of the artifact's model before the plan."""
    key = f"{text(artifact.get('model'))}@{text(artifact.get('revision'))}"
    return mapping(mapping(mapping(context.plan).get("models")).get(key))


def artifact_bytes(artifact: Map, context: Context) -> int | None:
    """The size of an artifact where the plan or the model's own data tells it."""
    for source in (artifact, _model(artifact, context)):
        for name in ("artifact_bytes", "bytes_total"):
            found = amount(source.get(name))
            if found is not None:
                return found
    return None


def _looked_at(artifact: Map, context: Context) -> Map:
    """What this host itself found at the artifact's path; the plan may know the model from another host."""
    key = f"{text(artifact.get('model'))}@{text(artifact.get('revision'))}"
    found = mapping(dig(context.facts, "models", key))
    return found if text(found.get("path")) == text(artifact.get("path")) != "" else {}


def is_there(artifact: Map, context: Context) -> bool:
    """Whether the artifact is complete on the host already, or the host was deployed with it."""
    found = _looked_at(artifact, context)
    if found.get("source") == "artifact":
        return True
    if found.get("source") == "hub":
        return False
    facts = mapping(context.facts)
    known = items(dig(facts, "deployed", "artifacts"))
    for document in ("deployed", "record"):
        known += items(list(mapping(dig(facts, document, "services")).values()))
    same = ("model", "revision", "path")
    return any(all(text(entry.get(key)) == text(artifact.get(key)) != "" for key in same) for entry in known)


def to_fetch(context: Context) -> list[Map]:
    return [artifact for artifact in artifacts(context) if not is_there(artifact, context)]


def filesystem_of(path: str, context: Context) -> Map | None:
    """The file system a path lies on, or will: by the nearest path that was looked at, else by its mount."""
    found = items(mapping(context.facts).get("filesystems"))
    for key in ("path", "mount"):
        above = [entry for entry in found if _is_below(path, text(entry.get(key)))]
        if above:
            return max(above, key=lambda entry: len(text(entry.get(key))))
    return None


def _is_below(path: str, parent: str) -> bool:
    if not path or not parent:
        return False
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def used_paths(context: Context) -> dict[str, str]:
    """The paths that a deploy writes below, each with what it is for."""
    paths = {text(mapping(context.plan).get("root")): "vllm_root"}
    for artifact in artifacts(context):
        path = text(artifact.get("path"))
        if path:
            paths.setdefault(posixpath.dirname(path) or "/", f"the model {text(artifact.get('model'))}")
    if contained(context):
        paths.setdefault(text(docker(context).get("root_dir")), "Docker")
    return {path: what for path, what in paths.items() if path and services(context)}


def needs(context: Context) -> tuple[list[Need], list[str]]:
    """What a deploy adds to the disks, and whose size is not known."""
    found: list[Need] = []
    unknown: list[str] = []
    for artifact in to_fetch(context):
        # An interrupted fetch goes on where it ended.
        left = amount(_looked_at(artifact, context).get("missing_bytes"))
        wanted = artifact_bytes(artifact, context) if left is None else left
        name = text(artifact.get("model"))
        if wanted is None:
            unknown.append(name)
        else:
            found.append(Need(text(artifact.get("path")), wanted, name))
    root = text(mapping(context.plan).get("root"))
    fresh = not mapping(mapping(context.facts).get("record"))
    if contained(context):
        found += _images(context)
    elif fresh and dig(context.plan, "engine", "managed") is True:
        size_of = ENGINE_BYTES.get(text(dig(context.plan, "engine", "flavor")), ENGINE_BYTES["cuda"])
        found.append(Need(root, size_of, "the engine", True))
    new = set(map(service_name, services(context))) - set(map(str, mapping(dig(context.facts, "record", "services"))))
    if new and fresh:
        found.append(Need(root, CACHE_BYTES * len(new), f"the caches of {plural(len(new), 'service')}", True))
    return found, unknown


def _images(context: Context) -> list[Need]:
    root_dir = _image_store(context)
    images = mapping(dig(context.facts, "nvidia", "container", "images"))
    found = {}
    for service in services(context):
        image = text(service.get("image"))
        facts = mapping(images.get(image))
        # An image that nobody looked for may be there.
        if image and root_dir and facts.get("present") is False and image_facts(service, context) is None:
            told = amount(facts.get("size_bytes"))
            estimate = IMAGE_BYTES["cuda" if on_gpus(context) else "cpu"]
            found[image] = Need(root_dir, told or estimate, short_image(service), not told)
    return list(found.values())


def _image_store(context: Context) -> str:
    """Where images are kept: by containerd, where the host said so, else by Docker."""
    paths = {text(entry.get("path")) for entry in items(mapping(context.facts).get("filesystems"))}
    by_containerd = docker(context).get("storage_driver") == SNAPSHOTTER and CONTAINERD_ROOT in paths
    return CONTAINERD_ROOT if by_containerd else text(docker(context).get("root_dir"))


def _pool(filesystem: Map) -> str:
    """What shares its space: volumes and datasets of one pool have devices of their own, and the same space left."""
    if text(filesystem.get("type")) in POOLED:
        return f"{filesystem.get('type')} {filesystem.get('free_bytes')}"
    return str(filesystem.get("device") or filesystem.get("mount") or filesystem.get("path"))


class Fill(t.NamedTuple):
    filesystem: Map
    needs: list[Need]
    free: int

    @property
    def wanted(self) -> int:
        return sum(need.bytes for need in self.needs)

    @property
    def known(self) -> int:
        return sum(need.bytes for need in self.needs if not need.estimate)

    def words(self) -> str:
        parts = [f"{need.what} {'about ' if need.estimate else ''}{size(need.bytes)}" for need in self.needs]
        place = text(self.filesystem.get("mount")) or text(self.filesystem.get("path"))
        return f"{size(self.free)} free on {place}, and the deploy adds {size(self.wanted)} ({listed(parts, 5)})"


def _fills(context: Context) -> tuple[list[Fill], list[str]]:
    """What goes to each file system, summed; and what cannot be told."""
    by_device: dict[str, Fill] = {}
    wanted, unknown = needs(context)
    silent = [f"the size of {name}" for name in unknown]
    for need in wanted:
        filesystem = filesystem_of(need.path, context)
        free = amount(mapping(filesystem).get("free_bytes"))
        if filesystem is None or free is None:
            silent.append(f"the file system of {need.path}")
            continue
        by_device.setdefault(_pool(filesystem), Fill(filesystem, [], free)).needs.append(need)
    return list(by_device.values()), silent


FREE_SOME = "docker system df; docker image prune --all; playbooks/prune.yml removes models that no service uses"


@rule(
    "disk.space", ERROR, "What a deploy adds fits on its file systems",
    "Models, image and caches often lie on one file system: each alone fits, and together they do not.",
)  # fmt: skip
def space(context: Context) -> Verdict:
    fills, silent = _fills(context)
    # A record without services is an older one: what it does not name may be there.
    unsure = bool(mapping(mapping(context.facts).get("record"))) and not dig(context.facts, "record", "services")
    found = []
    for fill in fills:
        if fill.wanted <= fill.free:
            continue
        # An estimate stops nobody.
        guessed = unsure or fill.known <= fill.free
        remedy = f"free some ({FREE_SOME}), or set vllm_model_root (or path: of a service) to a larger file system"
        severity = WARNING if guessed else ERROR
        found.append(Failure(fill.words(), f"{size(fill.wanted)} free", remedy, severity=severity))
    return Unknown(f"{listed(dict.fromkeys(silent), 4)} is not told") if silent and not found else found


@rule(
    "disk.tight", WARNING, "Something is left on each file system after a deploy",
    "A file system that is full stops Docker, the journal and the next update.",
)  # fmt: skip
def tight(context: Context) -> Verdict:
    fills, silent = _fills(context)
    seen_devices = {_pool(fill.filesystem) for fill in fills}
    for path in used_paths(context):
        filesystem = filesystem_of(path, context)
        free = amount(mapping(filesystem).get("free_bytes"))
        if filesystem is not None and free is not None and _pool(filesystem) not in seen_devices:
            seen_devices.add(_pool(filesystem))
            fills.append(Fill(filesystem, [], free))
        elif filesystem is None or free is None:
            silent.append(f"the file system of {path}")
    found = []
    for fill in fills:
        left = fill.free - fill.wanted
        total = whole(fill.filesystem.get("total_bytes")) or 0
        spare = min(SPARE_BYTES, SPARE_SHARE * total) if total else SPARE_BYTES
        if 0 <= left < spare:
            seen = fill.words() if fill.needs else f"{size(fill.free)} free on {text(fill.filesystem.get('mount'))}"
            remedy = f"free some before it is needed: {FREE_SOME}"
            found.append(Failure(seen, f"{size(spare)} left", remedy))
    return Unknown(f"{listed(dict.fromkeys(silent), 4)} is not told") if silent and not found else found


def _each(context: Context, look: t.Callable[[str, str, Map], Failure | None], key: str) -> Verdict:
    """Look at the file system of each path that a deploy uses, once each."""
    found, silent = [], []
    for path, what in used_paths(context).items():
        filesystem = filesystem_of(path, context)
        if filesystem is None or filesystem.get(key) is None:
            silent.append(path)
            continue
        failure = look(path, what, filesystem)
        if failure:
            found.append(failure)
    return Unknown(f"{KEYS[key]} of {listed(silent, 4)} is not told") if silent and not found else found


@rule(
    "disk.inodes", WARNING, "There are inodes left",
    "A file system without inodes is full with bytes to spare: an image has tens of thousands of files.",
)  # fmt: skip
def inodes(context: Context) -> Verdict:
    def look(path: str, what: str, filesystem: Map) -> Failure | None:
        # btrfs and some network file systems count none.
        free, total = amount(filesystem.get("free_inodes")), amount(filesystem.get("total_inodes"))
        if free is None or free >= ENOUGH_INODES or not total:
            return None
        remedy = (
            f"find what has many small files: du --inodes -xd1 {text(filesystem.get('mount')) or path} | sort -n | tail"
        )
        severity = ERROR if free < FEWEST_INODES else WARNING
        return Failure(f"{free} inodes are free where {path} lies ({what})", f"{ENOUGH_INODES} or more", remedy,
                       severity=severity)  # fmt: skip

    return _each(context, look, "free_inodes")


@rule(
    "disk.read_only", ERROR, "What a deploy writes to can be written to",
    "A file system that is mounted read-only, or became so after an error, takes no model, cache or record.",
)  # fmt: skip
def read_only(context: Context) -> Verdict:
    fetched = {posixpath.dirname(text(artifact.get("path"))) for artifact in to_fetch(context)}
    kept = {posixpath.dirname(text(artifact.get("path"))) for artifact in artifacts(context)} - fetched

    def look(path: str, what: str, filesystem: Map) -> Failure | None:
        if filesystem.get("read_only") is not True:
            return None
        mount = text(filesystem.get("mount")) or path
        remedy = (
            f"mount -o remount,rw {mount}; if it became so by itself, read 'dmesg' and check the disk (fsck, smartctl)"
        )
        # A model that is there already is only read.
        severity = WARNING if path in kept and path != text(mapping(context.plan).get("root")) else ERROR
        return Failure(
            f"{path} ({what}) lies on {mount}, which is read-only", "a writable one", remedy, severity=severity
        )

    return _each(context, look, "read_only")


@rule(
    "disk.noexec", ERROR, "Programs and compiled kernels can run where they lie",
    "With noexec neither the engine's programs nor the kernels that it compiles into its cache can be loaded "
    "(mount(8)).",
)  # fmt: skip
def noexec(context: Context) -> Verdict:
    root, root_dir = text(mapping(context.plan).get("root")), text(docker(context).get("root_dir"))

    def look(path: str, what: str, filesystem: Map) -> Failure | None:
        if path not in (root, root_dir) or "noexec" not in texts(filesystem.get("options")):
            return None
        mount = text(filesystem.get("mount")) or path
        remedy = f"mount -o remount,exec {mount} (and in /etc/fstab), or set vllm_root to another file system"
        return Failure(f"{path} ({what}) lies on {mount}, which is mounted noexec", "a file system with exec", remedy)

    return _each(context, look, "options")


@rule(
    "disk.network", WARNING, "Models and state lie on local disks",
    "Locks, mapped files and start-up times suffer over a network; Docker's layers do not work on NFS at all "
    "(Docker: overlay2 prerequisites).",
)  # fmt: skip
def network(context: Context) -> Verdict:
    def look(path: str, what: str, filesystem: Map) -> Failure | None:
        kind = text(filesystem.get("type")).lower()
        if kind not in NETWORK:
            return None
        severity = ERROR if what == "Docker" else WARNING if what == "vllm_root" else INFO
        variable = '"data-root" in /etc/docker/daemon.json' if what == "Docker" else "vllm_root"
        if what not in ("Docker", "vllm_root"):
            variable = "vllm_model_root"
            severity = INFO if kind in DISTRIBUTED else WARNING
        return Failure(
            f"{path} ({what}) lies on {kind}", "a local disk", f"set {variable} to a local disk", severity=severity
        )

    return _each(context, look, "type")


@rule(
    "disk.volatile", WARNING, "Models and state outlive a reboot",
    "A file system in memory is empty after a reboot, and takes the memory that the engines want.",
)  # fmt: skip
def volatile(context: Context) -> Verdict:
    def look(path: str, what: str, filesystem: Map) -> Failure | None:
        kind = text(filesystem.get("type")).lower()
        if kind not in VOLATILE:
            return None
        variable = "vllm_root" if what == "vllm_root" else "vllm_model_root"
        return Failure(f"{path} ({what}) lies on {kind}", "a disk", f"set {variable} to a path on a disk")

    return _each(context, look, "type")
