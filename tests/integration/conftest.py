# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_box import MODEL, REPOSITORY, Box, make_model
from model_hub import Hub, add_model
from module_host import MODEL as TINY
from module_host import Host, make_source
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


class FileScheduling(LoadScopeScheduling):
    """A file is one worker's: hosts that boot and engines that load are shared within it.

    Files that use the lab are one worker's, all of them: its one engine and registry are what some of them kill.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "lab" if "\npytestmark = pytest.mark.lab\n" in (REPOSITORY / file).read_text("utf-8") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FileScheduling:
    return FileScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jobs of a host that is this machine keep their state with the tests, not in /var/lib."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with three small models of different kinds."""
    root = tmp_path / "hub"
    root.mkdir()
    add_model(root, MODEL, make_model(tmp_path / "tiny"), tag="v1")
    add_model(root, "acme/whisper", make_model(tmp_path / "whisper", 2, "WhisperForConditionalGeneration"))
    add_model(
        root, "acme/vision", make_model(tmp_path / "vision", 3, "Qwen2_5_VLForConditionalGeneration", vision_config={})
    )
    add_model(root, "acme/embed", make_model(tmp_path / "embed", 4, "BertModel"))
    with Hub(root) as running:
        yield running


@pytest.fixture
def fresh_box(hub: Hub) -> Iterator[Box]:
    """A host on which nothing was ever done."""
    with Box(hub.endpoint) as made:
        yield made


@pytest.fixture
def box(fresh_box: Box) -> Box:
    """A host that has supervisor, and nothing else."""
    fresh_box.give_supervisor()
    return fresh_box


# --- a module as a process of its own ---


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source")


@pytest.fixture
def root(tmp_path: Path, source: Path) -> Path:
    """A hub's directory with the source as a model."""
    directory = tmp_path / "hub"
    directory.mkdir()
    add_model(directory, TINY, source, tag="v1", copy=True)
    return directory


@pytest.fixture
def repo(root: Path) -> Iterator[Hub]:
    """A hub that serves it, large files from another host name."""
    with Hub(root, lfs_base="http://localhost:{port}") as running:
        yield running


@pytest.fixture
def host(tmp_path: Path, repo: Hub) -> Host:
    return Host(tmp_path, repo.endpoint)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the model goes; nothing is there."""
    return tmp_path / "models/tiny"
