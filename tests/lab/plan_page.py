# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan of the example fleet, as docs/plan.md shows it.

From the inventory that users copy, through Ansible's own variables and templates and the role's defaults, on recorded
facts. ``python tests/lab/plan_page.py`` writes the page's pictures anew.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import typing as t
from dataclasses import fields
from pathlib import Path

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible.vars.manager import VariableManager

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(Path(sys.prefix) / "collections"))

from ansible_collections.gpufleet.vllm.plugins.module_utils._plan import Settings, make_plan  # noqa: E402
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_report import as_page  # noqa: E402
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_view import plan_view  # noqa: E402
from deployed_case import deploy  # noqa: E402

FLEET = ROOT / "inventory" / "fleet"
FIXTURES = ROOT / "tests/unit/plugins/module_utils/fixtures"
PAGE = ROOT / "docs" / "plan.md"
KEY = "sk-of-the-page-alone"
PICTURE = re.compile(r"(<!-- picture: (\w+) -->\n```text\n)(.*?)(```\n)", re.DOTALL)


def role_file(name: str) -> t.Any:
    """A file of the role, its templates as Ansible takes them."""
    return DataLoader().load_from_file(str(ROOT / "roles" / "vllm" / name), trusted_as_template=True)


def models() -> dict[str, t.Any]:
    recorded: dict[str, t.Any] = json.loads((FIXTURES / "fleet/models.json").read_text(encoding="utf-8"))
    for entry in recorded.values():
        entry["config"] = json.loads((FIXTURES / f"configs/{entry['config']}.json").read_text(encoding="utf-8"))
    return recorded


def host_facts(host: str) -> dict[str, t.Any]:
    recorded: dict[str, t.Any] = json.loads((FIXTURES / f"fleet/{host}.json").read_text(encoding="utf-8"))
    return {**recorded, "models": models()}


def host_options(host: str) -> dict[str, t.Any]:
    """The options that the role gives the plan of one host of the example."""
    loader = DataLoader()
    inventory = InventoryManager(loader=loader, sources=[str(FLEET)])
    found = inventory.get_host(host)
    assert found is not None
    own = VariableManager(loader=loader, inventory=inventory).get_vars(host=found)
    variables = {
        **role_file("defaults/main.yml"),
        **role_file("vars/main.yml"),
        **own,
        # No fleet service is placed on it; no filter of the collection is to be had here.
        "vllm_host_services": own["vllm_services"],
        "vllm_api_key": KEY,
        "vllm_host": {},
        "ansible_diff_mode": False,
    }
    tasks = role_file("tasks/main.yml")
    task = next(task["gpufleet.vllm.vllm_plan"] for task in tasks if "gpufleet.vllm.vllm_plan" in task)
    options: dict[str, t.Any] = Templar(loader=loader, variables=variables).template(task)
    return options


def planned(options: dict[str, t.Any], facts: dict[str, t.Any]) -> dict[str, t.Any]:
    settings = Settings(**{item.name: options[item.name] for item in fields(Settings) if item.name in options})
    return make_plan(options["services"], settings, facts)


def first_deploy() -> str:
    """Nothing was ever done on either host."""
    views = {}
    for host in ("gpu-01", "gpu-02"):
        facts = host_facts(host)
        views[host] = plan_view(planned(host_options(host), facts), facts)
    return as_page("Plan", views)


def later_change() -> str:
    """Both run the example; on the first, the vision model gets a shorter context, and transcription goes."""
    views = {}
    for host in ("gpu-01", "gpu-02"):
        options, facts = host_options(host), host_facts(host)
        facts = deploy(planned(options, facts), on=facts)
        changed = copy.deepcopy(options)
        if host == "gpu-01":
            changed["services"][0]["max_model_len"] = 16000
            changed["services"] = changed["services"][:1]
        for entry in facts["models"].values():
            entry["commit"] = facts["deployed"]["artifacts"][0]["commit"]
        views[host] = plan_view(planned(changed, facts), facts)
    return as_page("Plan", views)


PICTURES: dict[str, t.Callable[[], str]] = {"first": first_deploy, "later": later_change}


def with_pictures(page: str) -> str:
    """The page with its pictures drawn anew."""
    return PICTURE.sub(lambda match: match[1] + PICTURES[match[2]]() + match[4], page)


if __name__ == "__main__":
    PAGE.write_text(with_pictures(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
