# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What the plan makes of the hub's answer to the question for a model, in the operator's words. Pure, no I/O.

A hub that does not answer is held against no service: rules of the preflight speak of it. A hub that answers that the
model is not there, or not for this host, will say so to the fetch as well.
"""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, Finding

NOT_FOUND, REFUSED = "plan.model_not_found", "plan.model_refused"
ANSWERS = {"hub.not_found": NOT_FOUND, "hub.unknown_revision": NOT_FOUND, "hub.no_access": REFUSED}
"""Definite answers of a hub, and what the plan calls them."""

DEPLOYED = "deployed"
"""Marks the entry of a model that the host was deployed with."""

# The hub's errors name the options of modules; an operator has variables.
REMEDIES = {
    "hub.bad_endpoint": "correct vllm_hub_endpoint, such as https://modelscope.cn",
    "hub.bad_redirect": "correct vllm_hub_endpoint, or look for a login page or proxy between",
    "hub.bad_token": "correct vllm_hub_token; a line end at its end is the usual cause",
    "hub.no_access": "set vllm_hub_token to one of an account that may read it, and accept its terms on the hub's site",
    "hub.not_found": "correct model: and revision: of {service}, or vllm_hub_endpoint where another hub has it; the "
    "hub also hides private models behind this answer: set vllm_hub_token",
    "hub.odd_answer": "correct vllm_hub_endpoint, or look for a login page or proxy between",
    "hub.redirects": "correct vllm_hub_endpoint, or look for a login page or proxy between",
    "hub.tls": "install the authority's certificate on the host, or set SSL_CERT_FILE in its environment",
    "hub.token_over_http": "write https:// in vllm_hub_endpoint, or leave vllm_hub_token empty",
    "hub.unknown_revision": "correct revision: of {service}",
    "hub.unreachable": "let the host reach the hub (network, name resolution, https_proxy), or set vllm_hub_endpoint "
    "to a mirror that it reaches",
}


def remedy_of(code: str, remedy: str, service: str) -> str:
    """The remedy of a model's error, in an operator's terms where it is the hub's."""
    known = REMEDIES.get(code)
    return known.format(service=service) if known else remedy


def with_deployed(models: t.Mapping[str, t.Any], facts: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The models, those marked that the host was deployed with: what is there goes on, whatever a hub says by now."""
    names = _deployed(facts)
    return {name: {**entry, DEPLOYED: True} if name in names else entry for name, entry in models.items()}


def _deployed(facts: t.Mapping[str, t.Any]) -> set[str]:
    found: list[t.Any] = []
    for key in ("deployed", "record"):
        document = _mapping(facts.get(key))
        artifacts = document.get("artifacts")
        found += artifacts if isinstance(artifacts, (list, tuple)) else ()
        found += _mapping(document.get("services")).values()
    return {f"{entry.get('model')}@{entry.get('revision')}" for entry in found if isinstance(entry, t.Mapping)}


def check_answer(service: str, entry: t.Any) -> Finding | None:
    """The finding for a model that the hub definitely does not give; ``entry`` is one of vllm_model_info's.

    The hub was asked only where the artifact is not complete on the host.
    """
    entry = _mapping(entry)
    error = _mapping(entry.get("error"))
    code = error.get("code")
    if not isinstance(code, str) or code not in ANSWERS or entry.get(DEPLOYED):
        return None
    seen, expected = (_text(error.get(key)) for key in ("seen", "expected"))
    return Finding(
        ANSWERS[code],
        ERROR,
        seen or f"the hub answered {code}",
        expected or "a model that the hub has",
        remedy_of(code, "", service),
        service,
    )


def _text(value: t.Any) -> str:
    """Words of a host, fit for a table."""
    text = value[:600] if isinstance(value, str) else ""
    return "".join(char if char.isprintable() else " " for char in text).strip(" .")


def _mapping(value: t.Any) -> t.Mapping[str, t.Any]:
    return value if isinstance(value, t.Mapping) else {}
