"""Try out the gathered root file system before it becomes the image, as the image's user.

    python smoke.py TLS VERSION     (0 or 1; what the image's label says)

The first check that fails stops the build, and says what it expected.
"""

import os
import re
import subprocess
import sys

AGENT = "python -I /app/agent.pyc"
CODECS = """import json, socket
socket.getaddrinfo("127.0.0.1", 80)  # asks for the codec idna
utf = "utf-8-sig utf-16 utf-16-be utf-16-le utf-32 utf-32-be utf-32-le"
for name in ("ascii latin-1 unicode_escape " + utf).split():
    print(json.loads("1".encode(name)))"""
CERTIFICATES = """import certifi, ssl
print(ssl.create_default_context(cafile=certifi.where()).cert_store_stats())"""

# What a shell runs, its exit code, and words that it prints; never a traceback or a warning.
CHECKS = (
    (AGENT, 2, "SERVICE_NAME is not set"),
    ("python -I -S /app/healthcheck.pyc", 1, "no heartbeat file"),
    (f"python -I -c '{CODECS}'", 0, "1\n" * 10),
    ("for name in ps wget nslookup ping cat ls; do command -v $name || exit; done", 0, "/ls"),
)
WITHOUT_TLS = (f"REGISTRY_URL=https://registry {AGENT}", 2, "TLS=1")
WITH_TLS = (f"python -I -c '{CERTIFICATES}'", 0, "'x509_ca': 1")


def enter() -> None:
    """Go into the root file system, as the image's user."""
    os.chroot("/rootfs")
    os.chdir("/app")
    os.setgroups([])
    os.setgid(1000)
    os.setuid(1000)


def main(tls: str, version: str) -> None:
    """Run the checks, one after the other."""
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    label = (f"{AGENT} --version", 0, version)
    for command, code, words in (label, *CHECKS, WITH_TLS if tls == "1" else WITHOUT_TLS):
        done = subprocess.run(
            ["/bin/sh", "-c", command], env=environment, preexec_fn=enter, timeout=60,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        sound = done.returncode == code and words in done.stdout
        if not sound or re.search("Traceback|Warning", done.stdout):
            got = f"not {done.returncode} and\n{done.stdout}"
            sys.exit(f"smoke: {command}: expected exit code {code} and {words!r}, {got}")


if __name__ == "__main__":
    main(*sys.argv[1:])
