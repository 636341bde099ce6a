# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # The argument spec is module_utils/_hub_options.py.
    DOCUMENTATION = r"""
options:
  model:
    description:
      - The model's id on the hub, V(owner/name).
    type: str
    required: true
  revision:
    description:
      - Branch, tag, or commit of 40 hexadecimal digits.
      - A branch or tag is resolved to its commit once per run; the listing and every file are taken from that commit.
    type: str
    default: master
  include:
    description:
      - Shell patterns; only files whose whole path matches one of them are taken. As with the official client V(*)
        also matches V(/), and V(.*) means V(*) too.
      - Empty means all files.
    type: list
    elements: str
    default: []
  exclude:
    description:
      - Shell patterns like O(include); files that match one of them are left out. Applied after O(include).
    type: list
    elements: str
    default: []
"""

    CONNECTION = r"""
options:
  endpoint:
    description:
      - Base URL of the hub, with V(https://) when no scheme is given. It may have a path, for a mirror below one.
      - This is the only site that is asked. Redirects are followed for file contents (to V(https), or from V(http) to
        V(http)), without the token as soon as they leave this host.
      - If not set, the environment variable E(MODELSCOPE_ENDPOINT) of the managed host is used.
    type: str
    default: https://modelscope.cn
  token:
    description:
      - Access token, for private and gated repositories. Sent as bearer token and as the hub's session cookie.
      - Refused for a plain V(http) endpoint that is not loopback.
      - If not set, the environment variable E(MODELSCOPE_API_TOKEN) of the managed host is used.
    type: str
  timeout:
    description:
      - Seconds without a single byte after which a connection counts as dead and is tried again. There is no limit on
        the total time.
    type: float
    default: 60.0
notes:
  - Needs Python 3.9 or newer and its standard library on the managed host, nothing else.
  - Proxies are taken from the environment (E(HTTPS_PROXY), E(HTTP_PROXY), E(NO_PROXY)); loopback addresses never go
    through one. A private certificate authority is trusted through E(SSL_CERT_FILE).
  - Nothing the hub says is trusted before it was checked. A listing with a path that is absolute, leaves the
    directory, holds control characters or clashes with another one is refused as a whole before anything is written.
"""
