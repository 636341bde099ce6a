# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The signature of a bundle's manifest, made and checked by OpenSSH: every controller has it, with keys and habits."""

from __future__ import annotations

import os
import tempfile
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils._bundle import MANIFEST, NAMESPACE
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import NOT_FOUND, CommandResult, run_command

_SECONDS = 60.0
_NOT_FOUND = "install OpenSSH's client (Debian: openssh-client, RHEL: openssh)"


def environment() -> dict[str, str]:
    """No question may reach a terminal: nobody answers it, and the run would wait."""
    return {**os.environ, "LC_ALL": "C", "SSH_ASKPASS": "/bin/false", "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": "none"}


def sign(manifest: bytes, key: str) -> bytes:
    """The signature of the manifest by a private key, or by the agent that holds the one of this public key."""
    if not os.path.isfile(key):
        raise FleetError(
            "bundle.no_key",
            f"there is no signing key {key}",
            "the path of an OpenSSH private key, or of a public key whose private key ssh-agent holds",
            "make one: ssh-keygen -t ed25519 -f KEY, or correct signing_key",
        )
    with tempfile.TemporaryDirectory(prefix="gpufleet-sign-") as scratch:
        path = os.path.join(scratch, MANIFEST)
        with open(path, "wb") as stream:
            stream.write(manifest)
        # -q since OpenSSH 8.9 only; what it says without is not shown.
        done = _run(["ssh-keygen", "-Y", "sign", "-f", key, "-n", NAMESPACE, path])
        if done.rc != 0:
            raise FleetError(
                "bundle.sign_failed",
                f"ssh-keygen could not sign with {key}: {done.last_words}",
                "a key without a passphrase, or one that ssh-agent holds (then name its .pub file), and OpenSSH 8.2",
                "ssh-add the key and set signing_key to its .pub file",
            )
        with open(f"{path}.sig", "rb") as stream:
            return stream.read()


def made_by(manifest: bytes, signature: bytes, key: str) -> bool:
    """Whether this key made the signature."""
    public = f"{key}.pub" if os.path.isfile(f"{key}.pub") else key
    with open(public, encoding="utf-8", errors="replace") as stream:
        text = stream.readline().strip()
    if "PRIVATE KEY" in text:
        done = _run(["ssh-keygen", "-y", "-f", key])
        if done.rc != 0:
            return False
        text = done.out.strip()
    try:
        verify(manifest, signature, f"signer {text}", "signer")
    except FleetError as exc:
        if exc.code != "bundle.bad_signature":
            raise
        return False
    return True


@dataclass(frozen=True)
class Signer:
    """Who signed: the identity from the file of allowed signers, and the key."""

    identity: str
    key: str


def verify(manifest: bytes, signature: bytes, allowed_signers: str, identity: str = "") -> Signer:
    """Who of the allowed signers signed the manifest. Raises FleetError where none did.

    ``allowed_signers`` is the text of such a file: lines of a name, a key type and a key, as ssh-keygen(1) has it.
    """
    with tempfile.TemporaryDirectory(prefix="gpufleet-verify-") as scratch:
        paths = [os.path.join(scratch, name) for name in (MANIFEST, "signature", "allowed_signers")]
        for name, content in zip(paths, (manifest, signature, f"{allowed_signers.strip()}\n".encode())):
            with open(name, "wb") as stream:
                stream.write(content)
        path, signed, allowed = paths
        principal = identity or _principal(signed, allowed)
        options = ["-f", allowed, "-I", principal, "-n", NAMESPACE, "-s", signed]
        done = _run(["ssh-keygen", "-Y", "verify", *options], feed=path)
    if done.rc != 0:
        raise _refused(f"the signature of {MANIFEST} is not good for {principal!r}: {done.last_words}")
    return Signer(principal, done.out.strip().rpartition(" ")[2])


def _principal(signature: str, allowed_signers: str) -> str:
    done = _run(["ssh-keygen", "-Y", "find-principals", "-f", allowed_signers, "-s", signature])
    names = [line.strip() for line in done.out.splitlines() if line.strip()]
    if done.rc != 0 or not names:
        raise _refused(f"no key of the allowed signers made the signature: {done.last_words}")
    # A line may name several, with commas; any of them stands for the same key.
    return names[0].split(",")[0]


def _refused(seen: str) -> FleetError:
    return FleetError(
        "bundle.bad_signature",
        seen,
        f"a signature by one of the allowed signers, made for {NAMESPACE}, of exactly this manifest",
        "do not use this bundle before you know who made it; nothing of it was read or loaded",
    )


def _run(argv: t.Sequence[str], feed: str = "") -> CommandResult:
    if feed:
        # ssh-keygen verifies what comes on its standard input.
        argv = ["sh", "-c", 'file=$1; shift; exec "$@" <"$file"', "sh", feed, *argv]
    done = run_command(argv, _SECONDS, environment())
    if done.rc == NOT_FOUND:
        raise FleetError("bundle.no_ssh_keygen", done.last_words, "ssh-keygen of OpenSSH 8.2 or newer", _NOT_FOUND)
    return done
