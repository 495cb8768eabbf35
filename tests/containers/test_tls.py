"""An https registry, an https service: the TLS variant speaks with them, or says why not."""

from pathlib import Path

import pytest

from containers.engine import Lab, certificate

pytestmark = pytest.mark.docker

CA_FILE, OTHER = "/tls/ca.pem", "/tls/other.pem"
NO_ISSUER = "certificate refused: unable to get local issuer"


def test_certificates_are_verified(lab: Lab, tls_image: str, tmp_path: Path) -> None:
    tls = certificate(tmp_path, "registry", "service")
    pair = ("--tls", "/tls/cert.pem", "/tls/key.pem")
    registry, _service = lab.registry(*pair, **tls), lab.service(*pair, **tls)
    own = f"https://{registry.container.name}:8888"  # a name that is not in the certificate
    refused = {
        "other-ca": ({"REGISTRY_CA_FILE": OTHER}, "https://registry:8888", NO_ISSUER),
        "no-ca": ({}, "https://registry:8888", NO_ISSUER),
        "other-host": (
            {"REGISTRY_CA_FILE": CA_FILE},
            own,
            "certificate refused: Hostname mismatch",
        ),
    }
    options = tls | {"image": tls_image}
    sidecars = {
        name: lab.sidecar(
            options, name, SERVICE_NAME=name, SERVICE_HEALTH_CHECK="none", REGISTRY_URL=url, **more
        )
        for name, (more, url, _) in refused.items()
    }
    https = {"SERVICE_SCHEME": "https", "REGISTRY_URL": "https://registry:8888"}
    known = {"SERVICE_CA_FILE": CA_FILE, "REGISTRY_CA_FILE": CA_FILE}
    strange = lab.sidecar(options, "strange", **https, SERVICE_NAME="strange")
    good = lab.sidecar(options, **https, **known)

    assert registry.wait_record()["endpoint"] == "https://service:8080"
    good.wait_for("Heartbeat accepted", times=2)
    good.wait_health("healthy", "^registered, last heartbeat")
    strange.wait_for(f"Waiting for the service at https://service:8080/health: {NO_ISSUER}")
    for name, (_, url, why) in refused.items():
        sidecars[name].wait_for(f"Registration failed .*{url}: {why}")
        sidecars[name].wait_health("healthy", f"^registry unreachable for .*: {why}")
    assert set(registry.control()["records"]) == {"osint_service"}
    for sidecar in (good, strange, *sidecars.values()):
        assert "Traceback" not in sidecar.log
    assert good.stop() == 0
    registry.wait_for(" deregister osint_service -> 200")
