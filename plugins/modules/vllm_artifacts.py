#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_artifacts
short_description: Keep the verified model artifacts of a host, fetched in the background with visible progress
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Does for all artifacts of a host what M(gpufleet.vllm.modelscope_model) does for one, in one call. A host that has
    them all is left after a look, which reads no file of a model, starts nothing and writes nothing.
  - Where there is something to fetch or to verify, a job of its own does it in the background of the host. The action
    plugin waits for it in short module calls and shows bytes, rate, time left and connections.
  - The job outlives the connection and the playbook. A connection that breaks is tried again for a minute. After
    Ctrl-C, or on another day, the same task finds the job that does the same and waits for it instead of starting a
    second one. A job that ended meanwhile is told of by the next run.
  - An artifact that fails does not keep the others from being fetched. The module fails in the end and names each.
  - With O(background) a task only starts the jobs, so that all hosts of a play fetch at once whatever the number of
    C(forks) is. A second task with O(started) waits.
  - With O(distribution) hosts get the bytes from each other. The first task only looks then; a task with O(peers)
    starts what follows from the looks of all hosts; one with O(ends) ends the giving. The role
    P(gpufleet.vllm.vllm_artifacts#role) has these tasks.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._hub.connection
  - gpufleet.vllm._transfer
attributes:
  check_mode:
    support: full
    details:
      - What each artifact needs is found out in the call itself, as with M(gpufleet.vllm.modelscope_model). No job is
        started, and nothing is written.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  artifacts:
    description:
      - The artifacts, such as C(artifacts) of RV(gpufleet.vllm.vllm_plan#module:plan). They are fetched one after the
        other, each with all connections.
    type: list
    elements: dict
    default: []
    suboptions:
      model:
        description:
          - The model's id on the hub, V(owner/name).
        type: str
        required: true
      revision:
        description:
          - Branch, tag, or commit of 40 hexadecimal digits.
        type: str
        default: master
      path:
        description:
          - Directory of the model, with the rules of O(gpufleet.vllm.modelscope_model#module:path). No two artifacts
            may have the same. The default is the place where the official client keeps it.
        type: path
      include:
        description:
          - Shell patterns; only files that match one of them are taken. Empty means all files.
        type: list
        elements: str
        default: []
      exclude:
        description:
          - Shell patterns; files that match one of them are left out.
        type: list
        elements: str
        default: []
      services:
        description:
          - Names of what uses the artifact. Only kept in RV(results[].item).
        type: list
        elements: str
        default: []
  state:
    description:
      - V(present) makes sure that the artifacts are there, V(verified) also hashes every file again.
      - V(absent) ends jobs that work on the artifacts, then removes the files that this collection keeps there.
      - V(stopped) ends the jobs that work on the artifacts, all of each, and changes nothing else. What was received is
        kept for the next run.
    type: str
    choices: [present, verified, absent, stopped]
    default: present
  lock_timeout:
    description:
      - Seconds to wait where somebody else works on the directory of an artifact. An older job of the same user is
        waited for as long as it runs.
    type: float
    default: 60.0
  background:
    description:
      - Whether to come back as soon as the job runs, with RV(job).
    type: bool
    default: false
  started:
    description:
      - The registered result of an earlier task with O(background). If it has a job, this task waits for it, with the
        other options as in that task; if not, this task returns the same result.
    type: dict
  slice:
    description:
      - The longest single module call while waiting, in seconds. The first ones are shorter.
    type: float
    default: 20.0
  distribution:
    description:
      - V(direct) fetches from the hub.
      - With V(swarm) one host asks the hub, and every other one gets each piece from the host before it as soon as
        that has it. With V(seed) all others get the pieces from that one host. Hosts that have an artifact already give
        it, and the hub is not asked then.
      - Whoever loses the host that it gets from goes to the one before, and in the end to the hub, with a warning.
        Every host verifies every file as ever.
      - Only for O(state=present), outside of check mode, and with O(background) and O(peers) as the role has it. Hosts
        that are not in the same batch of the play do not know of each other.
    type: str
    choices: [direct, seed, swarm]
    default: direct
  seed:
    description:
      - The inventory name of the host that asks the hub. The default is the first one of the play that lacks something.
        One that cannot reach the hub while others can, or is not in the play, is passed over with a warning.
    type: str
  address:
    description:
      - The address at which the other hosts reach this one. It listens there and nowhere else while there is something
        to give.
    type: str
  peer_port:
    description:
      - The TCP port that it listens at.
    type: int
    default: 8791
  peers:
    description:
      - The name of the variable in which every host of the play has the registered result of its look, a task with
        O(background) and O(distribution). This task starts what follows from them.
    type: str
  membership:
    description:
      - The host's part in what all hosts do together. The action plugin sets it, leave it alone in playbooks.
    type: dict
  secret:
    description:
      - What the hosts of one run know each other by, made anew for each. The action plugin sets it.
    type: str
  ends:
    description:
      - C(lingering) of an earlier result. This task ends that job, which was done and went on giving to others.
    type: dict
  phase:
    description:
      - What one call of the module does. The action plugin sets it, leave it alone in playbooks.
    type: str
    choices: [run, look, start, wait, end]
    default: run
notes:
  - >-
    While there is something to fetch, a job has a directory that only its user can read: below E(XDG_STATE_HOME) of
    that user on the host if set, else in C(/var/lib/gpufleet-vllm/jobs) for root and in
    C(/var/tmp/gpufleet-vllm-jobs-UID) for others. It goes when the result was returned. No token is kept there.
  - A job that is killed, or that a reboot ends, is an error with the end of its log. The next run starts a new one,
    which goes on with what was received.
  - A run with another bandwidth, or other options of the transfer, ends the job of the same artifacts and goes on with
    the new ones.
  - A host gives only to the addresses of the run's hosts, and only to who proves to know the run's secret, which never
    travels between them. It stops when the play says so, or when nobody asked for half an hour.
  - Where logind has C(KillUserProcesses=yes), jobs of users without lingering end with the connection.
  - As many hosts are waited for at a time as Ansible has C(forks). They all fetch, whether they are waited for or not.
seealso:
  - module: gpufleet.vllm.modelscope_model
"""

EXAMPLES = r"""
- name: Have two models, with at most half of a gigabit link
  gpufleet.vllm.vllm_artifacts:
    artifacts:
      - model: Qwen/Qwen2.5-VL-7B-Instruct
        revision: v1.0.0
        path: /data/models/Qwen2.5-VL-7B-Instruct
        exclude: ["onnx/*"]
      - model: openai-mirror/whisper-large-v3-turbo
        path: /data/models/whisper-large-v3-turbo
        include: ["*.safetensors", "*.json", "*.txt"]
        services: [whisper]
    bandwidth: 500Mbit
    state: present

- name: Start fetching on all hosts of the play at once
  gpufleet.vllm.vllm_artifacts:
    artifacts: "{{ vllm_plan.artifacts }}"
    token: "{{ vault_modelscope_token }}"
    lock_timeout: 600
    background: true
  register: models_started
  changed_when: false

- name: Wait, while other things are done
  gpufleet.vllm.vllm_artifacts:
    artifacts: "{{ vllm_plan.artifacts }}"
    token: "{{ vault_modelscope_token }}"
    lock_timeout: 600
    started: "{{ models_started }}"
    slice: 10
  register: models

- name: End the jobs that fetch these
  gpufleet.vllm.vllm_artifacts:
    artifacts: "{{ vllm_plan.artifacts }}"
    state: stopped
    phase: run # the action plugin decides, whatever stands here

- name: Look at what every host has
  gpufleet.vllm.vllm_artifacts: &together
    artifacts: "{{ vllm_plan.artifacts }}"
    distribution: swarm
    seed: gpu-01 # has the fastest way to the hub
    address: "{{ ansible_host }}"
    peer_port: 8791
    background: true
  register: models
  changed_when: false

- name: Start to fetch from each other
  gpufleet.vllm.vllm_artifacts:
    <<: *together
    peers: models
    membership: {} # these two are the action plugin's
    secret: ""
  register: models_started
  changed_when: false

- name: Wait
  gpufleet.vllm.vllm_artifacts:
    artifacts: "{{ vllm_plan.artifacts }}"
    started: "{{ models_started }}"
  register: models

- name: End giving to the others
  gpufleet.vllm.vllm_artifacts:
    ends: "{{ models.lingering }}"
  when: models.lingering is defined
"""

RETURN = r"""
results:
  description:
    - For each artifact what M(gpufleet.vllm.modelscope_model) returns, in the order of O(artifacts). Those that failed
      have C(msg), C(code), C(seen), C(expected) and C(remedy) instead. If one did, C(files) is left out of all.
    - Empty while a job runs.
  returned: when there is no job, or it has ended
  type: list
  elements: dict
  contains:
    item:
      description: The artifact as it stands in O(artifacts).
      type: dict
      sample: {model: Qwen/Qwen2.5-VL-7B-Instruct, revision: v1.0.0, path: /data/models/Qwen2.5-VL-7B-Instruct}
    failed:
      description: Whether this artifact could not be brought to the wanted state.
      type: bool
      sample: false
    changed:
      description: Whether anything of this artifact was changed, or would be in check mode.
      type: bool
      sample: true
    commit:
      description: Commit that the revision resolved to. Null if the hub does not tell it.
      type: str
      sample: 2e50b77b0eee3083842019e257b74854323d880a
    path:
      description: The model's directory, absolute.
      type: str
      sample: /data/models/Qwen2.5-VL-7B-Instruct
    bytes_fetched:
      description: Bytes received from the hub for file contents. In check mode, the bytes that would be.
      type: int
      sample: 16584333312
    bytes_total:
      description: Size of all files of the artifact.
      type: int
      sample: 16584333312
    seconds:
      description: How long it took. Not in check mode.
      type: float
      sample: 40.9
    published:
      description: A mark that changes each time that other bytes were put in place.
      type: str
      sample: 9f86d081884c7d65
    manifest_digest:
      description: SHA-256 over the listing of the files.
      type: str
      sample: 4f6d3c2b1a09f8e7d6c5b4a392817060f5e4d3c2b1a0f9e8d7c6b5a493827160
    files:
      description: Every file of the artifact, with C(path), C(size) and C(sha256).
      type: list
      elements: dict
    adopted:
      description: Files that were there, were not in the manifest, and were found right.
      type: int
      sample: 0
    foreign:
      description: Paths in the directory that are not of the model, at most 100.
      type: list
      elements: str
    left_out:
      description: Files of the model that were left out because they are pickles.
      type: list
      elements: str
job:
  description:
    - The job that was started, or found at the same work (C(attached) is true then). It has C(id), C(pid), C(since),
      C(models) and C(directory).
  returned: with O(background), when there is something to do
  type: dict
  sample:
    id: 0f3c9a5d7e1b2846
    pid: 4711
    since: "2026-01-01T12:00:00Z"
    models: [Qwen/Qwen2.5-VL-7B-Instruct]
    directory: /var/lib/gpufleet-vllm/jobs/0f3c9a5d7e1b2846
    attached: false
look:
  description: What the other hosts have to know, for the task with O(peers).
  returned: with O(background) and O(distribution)
  type: dict
lingering:
  description: The job that has done its work and goes on giving to other hosts, for a task with O(ends). It has C(id).
  returned: when there is one
  type: dict
  sample: {id: 0f3c9a5d7e1b2846}
distribution:
  description: What was got from where, for a host that had a part in it.
  returned: with O(distribution), when there was something to fetch
  type: dict
  contains:
    mode:
      description: V(swarm) or V(seed).
      type: str
      sample: swarm
    serving:
      description: Whether the host gave to others, or could have.
      type: bool
      sample: true
    from_hub:
      description: Bytes from the hub.
      type: int
      sample: 0
    from_peers:
      description: Bytes by the host that gave them.
      type: dict
      sample: {gpu-01: 16584333312}
    to_peers:
      description: Bytes by the host that they were given to, as far as the host's own work took.
      type: dict
      sample: {gpu-03: 16584333312}
    given_up:
      description: Why others were asked instead of a host.
      type: dict
      sample: {}
    banned:
      description: Hosts that gave wrong bytes, and of what.
      type: dict
      sample: {}
stopped:
  description: The jobs that were ended, as in RV(job).
  returned: with O(state=stopped)
  type: list
  elements: dict
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts import Options, argument_spec, perform
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_piece import failure
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub_options import run_module


def work(module: AnsibleModule) -> dict[str, object]:
    result = perform(Options(module.params, module.check_mode, module._diff))
    failed = failure(result.get("results") or [])
    if failed is not None:
        for warning in result.pop("warnings", []):
            module.warn(warning)
        module.fail_json(**{**result, **failed})
    return result


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    run_module(module, work)


if __name__ == "__main__":
    main()
