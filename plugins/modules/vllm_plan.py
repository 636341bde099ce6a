#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_plan
short_description: Resolve what a host should run, without touching it
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Turns the services of the inventory and the facts of a host into a plan, with each service's command line,
    environment, GPUs, paths and port, the model artifacts and the engine.
  - Runs on the controller and does no I/O. Whatever is wrong becomes a finding with what was seen, what was expected
    and the remedy. All findings are reported at once.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
options:
  services:
    description:
      - The services, as C(vllm_services) has them. The documentation of the role P(gpufleet.vllm.vllm#role) lists the
        keys.
    type: raw
    required: true
  facts:
    description:
      - What M(gpufleet.vllm.vllm_host_info) returned.
    type: dict
    required: true
  root:
    description:
      - The directory on the host that holds everything this collection keeps there.
    type: str
    default: /var/lib/gpufleet-vllm
  model_root:
    description:
      - The directory on the host under which models lie, each in a directory named like the model.
    type: str
    required: true
  device:
    description:
      - V(auto) is V(cuda) where the host has GPUs, and V(cpu) where it has none and O(allow_cpu) is true.
    type: str
    choices: [auto, cuda, cpu]
    default: auto
  allow_cpu:
    description:
      - Whether a host without GPUs may run its services on the CPU.
    type: bool
    default: false
  runtime:
    description:
      - The process manager. V(auto) is V(compose) where O(image) is set, else V(systemd) where it is the init system,
        and V(supervisor) elsewhere.
    type: str
    choices: [auto, compose, systemd, supervisor]
    default: auto
  bind_address:
    description:
      - The address that services listen on, unless they set their own.
    type: str
    default: 127.0.0.1
  address:
    description:
      - The address under which others reach the host, for the URLs of services that listen on all addresses.
    type: str
    default: ""
  drain_seconds:
    description:
      - How long a service may finish its requests when it is stopped (vLLM's C(--shutdown-timeout)).
    type: int
    default: 120
  ready_timeout:
    description:
      - How long a service may take to become ready, in seconds.
    type: int
    default: 1800
  default_args:
    description:
      - vLLM flags for every service that does not set them itself.
    type: dict
    default: {}
  default_environment:
    description:
      - Environment variables for every service.
    type: dict
    default: {}
  cpu_args:
    description:
      - vLLM flags for services on the CPU engine.
    type: dict
    default: {}
  cpu_environment:
    description:
      - Environment variables for services on the CPU engine.
    type: dict
    default: {}
  engine_path:
    description:
      - The engine's virtual environment. By default C(engine/FLAVOR-VERSION) below O(root).
    type: str
    default: ""
  engine_python:
    description:
      - The interpreter that the engine is built with, if it is not the one that Ansible uses on the host.
    type: str
    default: ""
  engine_versions:
    description:
      - The vLLM version for each of V(cuda) and V(cpu).
    type: dict
    default: {}
  engine_managed:
    description:
      - Whether the engine is installed by this collection. If not, O(engine_path) must hold one.
    type: bool
    default: true
  image:
    description:
      - The container image of services that name none of their own. It carries the engine.
    type: str
    default: ""
  container_user:
    description:
      - The user of the containers, as C(uid:gid). The official image is made for V(2000:0).
    type: str
    default: "2000:0"
  container_shm_size:
    description:
      - The size of C(/dev/shm) in each container, unless the service sets its own. Tensor parallel workers talk
        through it, and Docker's 64 MiB are too few even for one. Only what is used takes memory.
    type: str
    default: 16gb
  container_read_only:
    description:
      - Whether the containers' root file system is read-only. C(/tmp) and the home directory stay writable.
    type: bool
    default: true
  container_gpu_driver:
    description:
      - How containers get their GPUs, both by UUID. V(nvidia) is Docker's device driver, V(cdi) the Container Device
        Interface.
    type: str
    choices: [nvidia, cdi]
    default: nvidia
  container_ulimits:
    description:
      - The resource limits of the containers, as Compose has them.
    type: dict
    default: {nofile: {soft: 65535, hard: 1048576}, memlock: -1, stack: 67108864}
  container_logging:
    description:
      - The logging driver of the containers and its options, as Compose has them.
    type: dict
    default: {driver: json-file, options: {max-size: 50m, max-file: "5"}}
  container_limits:
    description:
      - The most that one container may take of the host, as C(deploy.resources.limits) of Compose has it, with
        C(memory), C(cpus) and C(pids). Without it there is no limit, since a model's need of memory while it loads is
        the model's, and a limit below it ends the engine.
    type: dict
    default: {}
  allow_remote_code:
    description:
      - Whether services may run the Python code that a model brings along (vLLM's C(--trust-remote-code)). A service
        says so for itself with its key C(allow_remote_code).
    type: bool
    default: false
  allow_public_bind:
    description:
      - Whether services may listen on all addresses of the host or on one of the public internet. A service says so
        for itself with its key C(allow_public_bind).
    type: bool
    default: false
  allow_pickle:
    description:
      - Whether weights may be Python pickles, which can run code when they are loaded.
    type: bool
    default: false
  repin:
    description:
      - The services that are given their GPUs anew, as a list of names, or V(true) for all of them. The others keep the
        cards that they were deployed on, and where such a card was replaced the plan has an error.
    type: raw
    default: []
  models:
    description:
      - What M(gpufleet.vllm.vllm_model_info) returned as C(models), for models that O(facts) do not tell of.
    type: dict
    default: {}
  skip:
    description:
      - Codes of findings that are turned off, such as V(plan.memory_short), an estimate. RV(plan) names under
        C(skipped) those that were. Only judgements can be turned off, and no code without which nothing could be run.
    type: list
    elements: str
    default: []
  findings:
    description:
      - Findings from before the plan, as RV(gpufleet.vllm.vllm_place#module:host_findings). They stand first among
        those of the plan.
    type: list
    elements: dict
    default: []
  check_variables:
    description:
      - Whether the C(vllm_) variables of the host are looked at, too. A name that is nearly one of this collection's
        roles, and a value that a role cannot take, become findings.
      - An option whose variable has such a value takes its default.
    type: bool
    default: false
  fail_on_errors:
    description:
      - Whether findings of severity C(error) fail the task.
    type: bool
    default: true
  show:
    description:
      - Whether to print the findings that do not fail the task. M(gpufleet.vllm.vllm_plan_report) prints them as well.
    type: bool
    default: true
seealso:
  - module: gpufleet.vllm.vllm_host_info
  - module: gpufleet.vllm.vllm_plan_report
  - module: gpufleet.vllm.vllm_stack
"""

EXAMPLES = r"""
- name: Plan two services
  gpufleet.vllm.vllm_plan:
    facts: "{{ host }}"
    model_root: /data/models/vlm
    root: /var/lib/gpufleet-vllm
    device: auto
    allow_cpu: false
    runtime: auto
    bind_address: 127.0.0.1
    address: 10.0.0.11
    drain_seconds: 120
    ready_timeout: 1800
    default_args:
      disable-access-log-for-endpoints: /health,/metrics,/ping
    default_environment:
      HF_HUB_OFFLINE: "1"
    cpu_args:
      enforce-eager: true
    cpu_environment:
      VLLM_CPU_KVCACHE_SPACE: "1"
    engine_path: ""
    engine_python: /usr/bin/python3.11
    engine_versions:
      cuda: 0.33.0
      cpu: 0.32.0
    engine_managed: true
    allow_remote_code: false
    allow_public_bind: false
    allow_pickle: false
    repin: [whisper]
    models: {"Qwen/Qwen2.5-VL-7B-Instruct@master": {bytes_total: 16584414680}}
    skip: [plan.memory_tight]
    findings: []
    check_variables: false
    fail_on_errors: true
    show: true
    services:
      - name: qwen-vl
        model: Qwen/Qwen2.5-VL-7B-Instruct
        served_model_name: Qwen2.5-VL
        gpus: [0, 1]
        port: 8000
        max_model_len: 32000
      - name: whisper
        model: openai-mirror/whisper-large-v3
        gpus: [2]
        port: 8081
  register: planned

- name: Plan containers
  gpufleet.vllm.vllm_plan:
    facts: "{{ host }}"
    model_root: /data/models/vlm
    runtime: compose
    image: vllm/vllm-openai:v0.33.0
    container_user: "2000:0"
    container_shm_size: 16gb
    container_read_only: true
    container_gpu_driver: nvidia
    container_ulimits: {nofile: {soft: 65535, hard: 1048576}, memlock: -1}
    container_logging: {driver: local}
    container_limits: {memory: 200g}
    services:
      - name: qwen-vl
        model: Qwen/Qwen2.5-VL-7B-Instruct
        gpus: [0, 1]
        port: 8000
  register: contained
"""

RETURN = r"""
plan:
  description:
    - The plan. C(services) has, among others, C(command), C(environment), C(shell) (the command as a person would
      type it), C(container) (its part of the Compose file), C(url), C(gpus) and C(path). C(artifacts) has the models to
      fetch, C(engine) the engine, C(images) the images, C(findings) all findings and C(errors) how many of them are
      errors.
  returned: always
  type: dict
  sample:
    device: cuda
    runtime: systemd
    errors: 0
    findings: []
"""
