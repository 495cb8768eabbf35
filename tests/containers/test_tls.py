"""An https registry, an https service.

The TLS variant speaks with them, or says why not; the default one names it.
"""

import re
from collections.abc import Mapping

import pytest
import trustme

from containers.engine import Lab, Node

pytestmark = pytest.mark.docker

URL = "https://registry:8888"
CA_FILE = "/tls/ca.pem"


def tls_lab(
    lab: Lab, image: str, hostname: str, trusted: bool, **settings: str
) -> tuple[Node, Node]:
    """Start an https registry, a service and a sidecar; return the registry and the sidecar.

    Args: the name in the registry's certificate; whether the sidecar is given the CA that
    signed it, or some other; more settings.
    """
    ca, other = trustme.CA(), trustme.CA()
    certificate = ca.issue_cert(hostname)
    files: Mapping[str, bytes] = {
        "ca.pem": (ca if trusted else other).cert_pem.bytes(),
        "cert.pem": b"".join(pem.bytes() for pem in certificate.cert_chain_pems),
        "key.pem": certificate.private_key_pem.bytes(),
    }
    volumes = {lab.volume(files): {"bind": "/tls", "mode": "ro"}}
    registry = lab.registry("--tls", "/tls/cert.pem", "/tls/key.pem", volumes=volumes)
    lab.service()
    return registry, lab.sidecar({"image": image, "volumes": volumes}, REGISTRY_URL=URL, **settings)


def test_it_registers_over_https(lab: Lab, tls_image: str) -> None:
    registry, sidecar = tls_lab(lab, tls_image, "registry", trusted=True, REGISTRY_CA_FILE=CA_FILE)
    sidecar.wait_for("Service registered successfully: osint_service")
    sidecar.wait_for("Heartbeat accepted", times=2)
    sidecar.wait_health("healthy", "^registered, last heartbeat")
    assert sidecar.stop() == 0
    registry.wait_for(" register osint_service -> 201")
    registry.wait_for(" deregister osint_service -> 200")


@pytest.mark.parametrize(
    ("hostname", "trusted", "settings", "why"),
    [
        pytest.param(
            "registry",
            False,
            {"REGISTRY_CA_FILE": CA_FILE},
            "unable to get local issuer",
            id="other CA",
        ),
        pytest.param("registry", True, {}, "unable to get local issuer", id="CA not given"),
        pytest.param(
            "elsewhere", True, {"REGISTRY_CA_FILE": CA_FILE}, "Hostname mismatch", id="other host"
        ),
    ],
)
def test_a_wrong_certificate_is_refused(
    lab: Lab, tls_image: str, hostname: str, trusted: bool, settings: Mapping[str, str], why: str
) -> None:
    registry, sidecar = tls_lab(lab, tls_image, hostname, trusted, **settings)
    sidecar.wait_for(f"Registration failed .*{URL}: certificate refused: {why}")
    sidecar.wait_health("healthy", f"^registry unreachable for .*: certificate refused: {why}")
    log = sidecar.log
    assert "Traceback" not in log
    for line in re.findall(".*Registration failed.*", log):
        assert f"certificate refused: {why}" in line
    assert registry.count("register osint_service") == 0


def test_a_ca_file_that_holds_no_certificate_is_a_bad_setting(lab: Lab, tls_image: str) -> None:
    once = {"image": tls_image, "restart_policy": None}
    sidecar = lab.sidecar(once, REGISTRY_URL=URL, REGISTRY_CA_FILE="/etc/passwd")
    assert sidecar.container.wait(timeout=30)["StatusCode"] == 2
    sidecar.wait_for("Bad setting: REGISTRY_CA_FILE=/etc/passwd: ")


@pytest.mark.parametrize(("name", "value"), [("REGISTRY_URL", URL), ("SERVICE_SCHEME", "https")])
def test_the_default_variant_names_the_build_argument(lab: Lab, name: str, value: str) -> None:
    sidecar = lab.sidecar({"restart_policy": None}, **{name: value})
    assert sidecar.container.wait(timeout=30)["StatusCode"] == 2
    sidecar.wait_for(f"Bad setting: {name}={value}: .*--build-arg TLS=1")
    assert len(sidecar.log.splitlines()) == 1


def test_an_https_service_is_verified_by_its_own_authority(lab: Lab, tls_image: str) -> None:
    ca = trustme.CA()
    certificate = ca.issue_cert("service")
    pem = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    files = {
        "ca.pem": ca.cert_pem.bytes(),
        "cert.pem": pem,
        "key.pem": certificate.private_key_pem.bytes(),
    }
    volumes = {lab.volume(files): {"bind": "/tls", "mode": "ro"}}
    registry = lab.registry()
    tls = ["--port", "8443", "--tls", "/tls/cert.pem", "/tls/key.pem"]
    command = ["python", "-m", "kit.peers.service", "--host", "0.0.0.0", *tls]
    lab.run(lab.peer_image, command, "service", volumes=volumes)
    settings = {"SERVICE_PORT": "8443", "SERVICE_SCHEME": "https"}
    strange = lab.sidecar({"image": tls_image}, alias="strange", **settings)
    strange.wait_for(
        "Waiting for the service at https://service:8443/health: certificate refused: unable to get"
    )
    assert registry.record() is None
    lab.sidecar({"image": tls_image, "volumes": volumes}, SERVICE_CA_FILE=CA_FILE, **settings)
    assert registry.wait_record()["endpoint"] == "https://service:8443"
