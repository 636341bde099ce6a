#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_probe
short_description: Wait for vLLM services and prove with real requests that they answer
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Waits until C(/health) of every endpoint answers 200, with progress on the controller's terminal.
  - Then checks C(/v1/models), and sends a real request for what the model can do. That is a chat (in one piece and
    as a stream), a chat about an image, the transcription of a spoken clip, embeddings, or a completion. The answers
    are checked, not only their status.
  - A service with an API key must answer 401 without it and with a wrong one, for its list of models as for the routes
    of its probes. Those are sent an empty question, which costs nothing.
  - Only while it waits are connection errors retried. A service that dies meanwhile ends the wait, and so does its
    deadline. The message then says what was last seen, with the end of the engine's log.
  - An action plugin splits the wait into short module calls, so a long load does not hang on one connection. One that
    breaks is tried again for a minute. After that the task fails, so that a C(rescue) can go on.
  - All endpoints of a host are asked side by side, and so are the hosts, as many at a time as Ansible has C(forks)
    (5 unless set). A host that waits for a long load takes up one of them, so set C(forks) to the number of hosts.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
    details:
      - Sends nothing in check mode, since what is not running yet can not answer.
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  endpoints:
    description:
      - The services to probe, as in C(services) of RV(gpufleet.vllm.vllm_plan#module:plan). Used are C(name), C(url),
        C(served_model_name), C(path) (the model directory, whose C(config.json) tells vision models),
        C(ready_timeout) and C(probes).
      - C(probes) is a list of mappings with C(kind) (V(chat), V(completion), V(vision), V(transcription) or
        V(embedding)), and optionally C(prompt), C(expect) (a regular expression searched in the answer) and
        C(max_tokens). If it is missing or V(null), the probes follow from the engine's routes and the model's
        architecture. An empty list sends none.
      - Without C(expect), a built-in prompt has its right answer, and for a prompt of one's own any words will do. The
        pattern V(.) takes any words, and V(.*) also none. For embeddings it is searched in a line like C(384
        dimensions, cosine 0.721 and 0.043), and the numbers are not compared then.
    type: list
    elements: dict
    required: true
  secrets:
    description:
      - For each service the secret environment, of which C(VLLM_API_KEY) is used. See
        P(gpufleet.vllm.service_secrets#filter).
    type: dict
    default: {}
  root:
    description:
      - The directory on the host that holds everything this collection keeps there. The logs are read from it.
    type: path
    default: /var/lib/gpufleet-vllm
  runtime:
    description:
      - The process manager of the services, which knows whether they live and where their logs are.
      - V(none) probes over HTTP alone, for example from another host.
    type: str
    choices: [auto, compose, systemd, supervisor, none]
    default: auto
  timeout:
    description:
      - How long to wait until C(/health) is good, in seconds, for endpoints without C(ready_timeout).
    type: int
    default: 1800
  request_timeout:
    description:
      - How long one request may take, in seconds.
    type: int
    default: 120
  max_restarts:
    description:
      - How often a service may die and be restarted while it is waited for.
    type: int
    default: 1
  log_lines:
    description:
      - How many of the last lines of a service's log a failure shows.
    type: int
    default: 25
  slice:
    description:
      - The longest single module call while waiting, in seconds.
    type: int
    default: 5
  phase:
    description:
      - What one call of the module does. The action plugin sets it, leave it alone in playbooks.
    type: str
    choices: [wait, ask]
    default: ask
seealso:
  - module: gpufleet.vllm.vllm_stack
"""

EXAMPLES = r"""
- name: Wait for the services of the plan and ask each of them
  gpufleet.vllm.vllm_probe:
    endpoints: "{{ vllm_plan.services }}"
    secrets: "{{ vllm_services | gpufleet.vllm.service_secrets }}"
    root: /var/lib/gpufleet-vllm
    runtime: auto
    timeout: 1800
    request_timeout: 120
    max_restarts: 1
    log_lines: 25
    slice: 5

- name: Ask any OpenAI-compatible server something of one's own
  gpufleet.vllm.vllm_probe:
    runtime: none
    endpoints:
      - name: qwen
        url: http://10.0.0.11:8000
        served_model_name: qwen2.5-vl
        probes:
          - kind: chat
            prompt: Which planet is the largest?
            expect: (?i)jupiter

- name: Look at the health of a server for at most three seconds
  gpufleet.vllm.vllm_probe:
    runtime: none
    endpoints: [{name: qwen, url: "http://10.0.0.11:8000", served_model_name: qwen2.5-vl, probes: [], ready_timeout: 3}]
    phase: ask # the action plugin decides, whatever stands here
"""

RETURN = r"""
reports:
  description:
    - For each endpoint C(name), C(url), C(ok), C(version) (of vLLM), C(model_id), C(max_model_len) and C(results).
      Each result has C(kind), C(asked), C(expected), C(answered), C(ok), C(reason), C(seconds) and
      C(first_token_seconds).
    - C(memory) has, for a service of this host whose plan reckoned its memory, what the engine said of its own when
      it started, each with C(what), C(estimated), C(seen), C(unit) and C(percent). It is empty where its log does not
      tell that any more.
    - The kinds are those of the probes, and besides V(models) (the list), V(key), V(stream) (the second half of a chat)
      and V(routes) (only if the engine's routes could not be told).
  returned: when the endpoints were asked
  type: list
  elements: dict
  sample:
    - name: smollm2
      url: http://127.0.0.1:8000
      ok: true
      version: 0.32.0
      model_id: smollm2-135m
      max_model_len: 2048
      memory: [{what: KV cache, estimated: 24.58, seen: 24.83, unit: GiB, percent: -1.0}]
      results: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._probe_run import argument_spec, ask, wait_slice
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    do = {"wait": wait_slice, "ask": ask}[module.params["phase"]]
    try:
        module.exit_json(changed=False, **do(module.params))
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())


if __name__ == "__main__":
    main()
