"""Tries out the gathered root file system before it becomes the image, as the image's user.

    python docker/smoke.py --root /rootfs --version 1.0.0 [--tls 1]

Every check is a process inside (chroot), judged by its exit code and by what it prints. One that fails stops
the build, with what was run, what was expected and what came.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import NamedTuple

UID = 1000
PYTHON = ("python", "-I", "-c")
AGENT = ("python", "-I", "/app/agent.pyc")
HEALTHCHECK = ("python", "-I", "-S", "/app/healthcheck.pyc")
APPLETS = ("sh", "ps", "wget", "nslookup", "ping", "cat", "ls")
HTTPS = {"SERVICE_NAME": "smoke", "SERVICE_HOST": "smoke", "SERVICE_PORT": "0", "REGISTRY_URL": "https://registry"}


class Check(NamedTuple):
    """What to run in the image, with which settings, and what must come of it."""

    what: str
    command: tuple[str, ...]
    code: int = 0
    says: tuple[str, ...] = ()
    keeps_quiet_about: tuple[str, ...] = ("Traceback", "Warning")
    settings: dict[str, str] = {}  # noqa: RUF012 - never changed


CHECKS = [
    Check("the agent refuses to start without settings", AGENT, 2, ("SERVICE_NAME", "SERVICE_HOST")),
    Check("the health check has nothing to read yet", HEALTHCHECK, 1),
    Check("requests is there", (*PYTHON, "import requests.adapters, urllib3"), keeps_quiet_about=()),
    Check("host names that are not ASCII", (
        *PYTHON, "import idna; print('b\\xfccher'.encode('idna'), idna.encode('B\\xfccher', uts46=True))",
    ), says=("b'xn--bcher-kva' b'xn--bcher-kva'",)),
    Check("bodies in any encoding that JSON may have", (
        *PYTHON, "import json; print([json.loads('1'.encode(name)) for name in"
                 " ('utf-8', 'utf-8-sig', 'utf-16', 'utf-16-be', 'utf-32', 'utf-32-le')])",
    ), says=("[1, 1, 1, 1, 1, 1]",)),
    Check("dates", (*PYTHON, "import time; print(time.strptime('2024', '%Y').tm_year)"), says=("2024",)),
    Check("tools to look around", ("sh", "-c", " && ".join(f"command -v {applet}" for applet in APPLETS))),
]
PLAIN = [
    Check("no OpenSSL", (*PYTHON, "import ssl"), 1, ("No module named 'ssl'",), ()),
    Check("an https registry is refused, with the way out", AGENT, 2, ("TLS=1",), settings=HTTPS),
]
TLS = [
    Check("OpenSSL and certificates", (
        *PYTHON, "import certifi, ssl;"
                 " print(ssl.create_default_context(cafile=certifi.where()).cert_store_stats())",
    ), says=("x509_ca",), keeps_quiet_about=("Traceback", "'x509_ca': 0")),
    Check("an https registry is no reason to stop, a port of 0 is", AGENT, 2, ("SERVICE_PORT",),
          ("Traceback", "Warning", "REGISTRY_URL"), HTTPS),
]


def run(root: str, check: Check) -> subprocess.CompletedProcess[str]:
    """Runs a check's command inside the root file system as the image's user."""
    def enter() -> None:
        os.chroot(root)
        os.chdir("/app")
        os.setgroups([])
        os.setgid(UID)
        os.setuid(UID)

    settings = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", **check.settings}
    return subprocess.run(check.command, env=settings, preexec_fn=enter, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)


def failure(root: str, check: Check) -> str | None:
    """Returns what is wrong, for people, or None where the check passes."""
    got = run(root, check)
    missing = [text for text in check.says if text not in got.stdout]
    unwanted = [text for text in check.keeps_quiet_about if text in got.stdout]
    if got.returncode == check.code and not missing and not unwanted:
        return None
    return (f"smoke: {check.what}: {' '.join(check.command)}\n"
            f"  expected: exit code {check.code}, {check.says}, nothing of {check.keeps_quiet_about}\n"
            f"  got: exit code {got.returncode}, and\n{got.stdout}")


def main() -> int:
    """Returns the exit code: 0, or 1 where a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="the root file system to try")
    parser.add_argument("--tls", default="0", choices=("0", "1"), help="1: the image is to have TLS")
    parser.add_argument("--version", required=True, help="what the image's label says")
    options = parser.parse_args()
    labelled = Check("agent has the VERSION of the Dockerfile", (*AGENT, "--version"), says=(options.version,))
    checks = [labelled, *CHECKS, *(TLS if options.tls == "1" else PLAIN)]
    failures = [failure(options.root, check) for check in checks]
    for text in filter(None, failures):
        print(text, file=sys.stderr)
    return 1 if any(failures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
