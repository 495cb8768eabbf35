"""The image: its size, what is in it and what is not, and how it is built."""

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import docker
import pytest

import agent
from bench.image_sizes import DEFAULT_LIMIT, TLS_LIMIT, Sizes, sizes
from containers.engine import BASE, RUN, BuildError, Images
from kit.sidecar import ROOT

pytestmark = pytest.mark.docker

CONTEXT = ("Dockerfile", ".dockerignore", "agent.py", "healthcheck.py", "requirements.txt")


@pytest.fixture(scope="session")
def files(images: Images, image: str) -> dict[str, bytes]:
    """The files of the default image."""
    return unpack(images, image)


@pytest.fixture(scope="session")
def tls_files(images: Images, tls_image: str) -> dict[str, bytes]:
    """The files of the image with TLS."""
    return unpack(images, tls_image)


def unpack(images: Images, image: str) -> dict[str, bytes]:
    """Return an image's files and links: path without a leading slash -> content, or target."""
    container = images.client.containers.create(image, labels={RUN: images.run})
    packed = io.BytesIO()
    try:
        packed.writelines(container.export())  # type: ignore[arg-type]  # the stubs are wrong
    finally:
        container.remove()
    packed.seek(0)
    files = {}
    with tarfile.open(fileobj=packed) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if not member.isdir():
                files[member.name] = file.read() if file else member.linkname.encode()
    return files


@pytest.mark.parametrize(("fixture", "limit"), [("image", DEFAULT_LIMIT), ("tls_image", TLS_LIMIT)])
def test_size_and_history(
    client: docker.DockerClient, request: pytest.FixtureRequest, fixture: str, limit: Sizes
) -> None:
    image = client.images.get(request.getfixturevalue(fixture))
    got = sizes(client, str(image.id))
    assert got.on_disk <= limit.on_disk
    assert got.compressed <= limit.compressed
    shown = image.attrs["Size"]
    assert shown == pytest.approx(got.on_disk, rel=0.02), "what docker images shows"
    history = [str(step["CreatedBy"]).replace(RUN, "") for step in image.history()]
    assert not re.search(r"\b(pip|apk|gcc|make|tests?)\b", "\n".join(history)), history
    assert len(image.attrs["RootFS"]["Layers"]) <= 2, history


def test_nothing_is_in_it_that_it_does_not_need(files: dict[str, bytes]) -> None:
    unwanted = re.compile(
        r"(^|/)(pip|ensurepip|setuptools|wheel|gcc|cc|apk)($|/|-)|(^|/)tests?/|\.(py|h|a|whl)$"
        r"|requirements"
    )
    assert [path for path in files if unwanted.search(path)] == []


def test_openssl_is_in_the_tls_variant_alone(
    files: dict[str, bytes], tls_files: dict[str, bytes]
) -> None:
    openssl = re.compile(r"libssl|libcrypto|/_ssl|/_hashlib|openssl", re.IGNORECASE)
    assert [path for path in files if openssl.search(path)] == []
    found = {match[0] for match in map(openssl.search, tls_files) if match}
    assert found == {"libssl", "libcrypto", "/_ssl"}


def test_scanners_find_the_packages_with_their_versions(
    files: dict[str, bytes], tls_files: dict[str, bytes]
) -> None:
    """Of idna, and of certifi without TLS, nothing is in the image."""
    text = (ROOT / "requirements.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    inside = {"requests", "urllib3"}
    assert distributions(files) == {name: pins[name] for name in inside}
    assert distributions(tls_files) == {name: pins[name] for name in inside | {"certifi"}}


def distributions(files: dict[str, bytes]) -> dict[str, str]:
    """Return the Python packages that a scanner finds: name -> version."""
    texts = [files[path].decode() for path in files if path.endswith(".dist-info/METADATA")]
    fields = r"\AMetadata-Version: .*\nName: (.+)\nVersion: (.+)\n"
    return dict(re.findall(fields, text)[0] for text in texts)


# As Alpine keeps it: package, directory, file.
RECORDS = {
    "busybox": "C:Q1=\nP:busybox\nV:1.37.0-r12\nF:bin\nR:busybox\na:0:0:755\nZ:Q1=\n\n",
    "zlib": "P:zlib\nV:1.3.1-r2\nF:usr/share\nF:lib\nR:libz.so.1\n\n",
    "libssl3": "P:libssl3\nV:3.3.3-r0\nF:lib\nR:libssl.so.3\n\n",  # not in the default image
}


@pytest.mark.parametrize(
    ("directory", "link"),
    [("/lib/apk/db", "true"), ("/usr/lib/apk/db", "ln -s ../usr/lib/apk /lib/apk")],
)
def test_another_base_and_where_it_comes_from_and_packages_of_alpine(
    images: Images, tmp_path: Path, directory: str, link: str
) -> None:
    """The stand-in of the base image has no apk; so one with a database is made up."""
    (tmp_path / "installed").write_text("".join(RECORDS.values()))
    setup = f"FROM {BASE}\nRUN mkdir -p {directory} && {link}\nCOPY installed {directory}/\n"
    told = {
        "BASE": images.build("apk-base", tmp_path, dockerfile=setup),
        "REVISION": "0123abc",
        "SOURCE": "https://git.example.org/sidecar",
    }
    options = [word for item in told.items() for word in ("--build-arg", "=".join(item))]
    tag = images.build("apk", ROOT, *options)
    found = unpack(images, tag)
    assert found[f"{directory}/installed"[1:]].decode() == RECORDS["busybox"] + RECORDS["zlib"]
    if link != "true":
        assert found["lib/apk"] == b"../usr/lib/apk"
    labels = images.client.images.get(tag).attrs["Config"]["Labels"]
    for name in ("REVISION", "SOURCE"):
        assert labels[f"org.opencontainers.image.{name.lower()}"] == told[name]


def test_configuration(client: docker.DockerClient, image: str) -> None:
    config = client.images.get(image).attrs["Config"]
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["python", "-I", "/app/agent.pyc"]
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-I", "-S", "/app/healthcheck.pyc"]
    assert config["Labels"]["org.opencontainers.image.title"] == "vertice-registry-sidecar"
    assert config["Labels"]["org.opencontainers.image.version"] == agent.VERSION
    assert not config.get("StopSignal")  # SIGTERM
    assert not config.get("Volumes")


def test_both_builders_make_the_same(images: Images, image: str) -> None:
    if subprocess.run(["docker", "buildx", "version"], capture_output=True).returncode:
        pytest.skip("no buildx plugin")
    tags = [images.build(f"buildkit-{kit}", ROOT, buildkit=bool(kit)) for kit in (0, 1)]
    usual, *built = (images.client.images.get(tag).attrs for tag in (image, *tags))
    for each in built:
        assert each["Size"] == usual["Size"]
        for key in ("User", "Entrypoint", "Healthcheck", "WorkingDir", "Env", "Labels"):
            assert each["Config"][key] == usual["Config"][key], key


def test_it_is_built_from_the_base_alone_for_any_architecture() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert f"\nARG BASE={BASE}\nFROM $BASE AS builder\n" in text
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["$BASE", "scratch"]
    # A `# syntax=` line fetches an image; the classic builder knows neither mounts nor heredocs.
    assert not re.search(r"^# *syntax|--mount|<<|^ADD |\bapk\b", text, re.MULTILINE)
    names = re.compile(
        r"x86|amd64|aarch|arm(64|v\d|hf)|i[3-6]86|ppc|s390|riscv|ld-musl-", re.IGNORECASE
    )
    for file in (ROOT / "Dockerfile", *(ROOT / "docker").rglob("*.py")):
        assert not names.search(file.read_text()), file


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("Dockerfile", f"VERSION={agent.VERSION}", "VERSION=9.9.9",
         r"smoke: python .*--version: expected 0 and 9\.9\.9"),
        ("agent.py", "import json\n", "import json, idna.core\n",
         r"agent\.py\", line \d+(?s:.)*No module named 'idna\.core'"),
        ("healthcheck.py", "import sys\n", "import sys, ssl\n",
         r"healthcheck\.py\", line \d+(?s:.)*No module named 'ssl'"),
    ],
    ids=["label of another version", "import behind a stand-in", "import of TLS"],
)  # fmt: skip
def test_what_does_not_fit_stops_the_build(
    images: Images, tmp_path: Path, file: str, old: str, new: str, problem: str
) -> None:
    for name in CONTEXT:
        shutil.copy(ROOT / name, tmp_path / name)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "docker", tmp_path / "docker", ignore=ignored)
    text = (tmp_path / file).read_text()
    assert text.count(old) == 1
    (tmp_path / file).write_text(text.replace(old, new))
    with pytest.raises(BuildError, match=problem):
        images.build("unfit", tmp_path)
