"""The image: its size, what is in it and what is not, and how it is built."""

import io
import re
import shutil
import tarfile
from pathlib import Path

import docker
import pytest

import agent
from bench.image_sizes import DEFAULT_LIMIT, TLS_LIMIT, Sizes, sizes
from containers.engine import BASE, RUN, BuildError, Images, Lab, has_buildx
from kit.sidecar import ROOT

pytestmark = pytest.mark.docker

CONTEXT = (
    "Dockerfile",
    ".dockerignore",
    "agent.py",
    "healthcheck.py",
    "requirements.txt",
    "docker",
)


@pytest.fixture(params=[("image", DEFAULT_LIMIT), ("tls_image", TLS_LIMIT)], ids=["default", "tls"])
def variant(request: pytest.FixtureRequest) -> tuple[str, Sizes]:
    """Each variant's tag, and what it may weigh."""
    fixture, limit = request.param
    return request.getfixturevalue(fixture), limit


@pytest.fixture(scope="session")
def files(client: docker.DockerClient, run: str, image: str) -> dict[str, bytes]:
    """The files of the default image."""
    return unpack(client, run, image)


@pytest.fixture(scope="session")
def tls_files(client: docker.DockerClient, run: str, tls_image: str) -> dict[str, bytes]:
    """The files of the image with TLS."""
    return unpack(client, run, tls_image)


def unpack(client: docker.DockerClient, run: str, image: str) -> dict[str, bytes]:
    """Return an image's files and links: path without the leading slash -> content.

    Of a link that is where it leads.
    """
    container = client.containers.create(image, labels={RUN: run})
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


def test_sizes(client: docker.DockerClient, variant: tuple[str, Sizes]) -> None:
    tag, limit = variant
    got = sizes(client, tag)
    assert got.on_disk <= limit.on_disk
    assert got.compressed <= limit.compressed
    shown = client.images.get(tag).attrs["Size"]
    assert shown == pytest.approx(got.on_disk, rel=0.02), "what docker images shows"


def test_history_is_short_and_names_no_tool(
    client: docker.DockerClient, variant: tuple[str, Sizes]
) -> None:
    history = [
        str(step["CreatedBy"]).replace(RUN, "") for step in client.images.get(variant[0]).history()
    ]
    assert not re.search(r"\b(pip|apk|gcc|make|tests?)\b", "\n".join(history)), history
    assert len(client.images.get(variant[0]).attrs["RootFS"]["Layers"]) <= 2, history


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
    ids=["directory", "link"],
)
def test_scanners_find_the_packages_of_alpine(
    client: docker.DockerClient, images: Images, tmp_path: Path, directory: str, link: str
) -> None:
    """The stand-in of the base image has no apk; so one with a database is made up."""
    (tmp_path / "installed").write_text("".join(RECORDS.values()))
    setup = f"FROM {BASE}\nRUN mkdir -p {directory} && {link}\nCOPY installed {directory}/\n"
    base = images.build("apk-base", tmp_path, dockerfile=setup)
    found = unpack(client, images.run, images.build("apk", ROOT, "--build-arg", f"BASE={base}"))
    assert found[f"{directory}/installed"[1:]].decode() == RECORDS["busybox"] + RECORDS["zlib"]
    if link != "true":
        assert found["lib/apk"] == b"../usr/lib/apk"


def test_configuration(client: docker.DockerClient, image: str) -> None:
    config = client.images.get(image).attrs["Config"]
    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["python", "-I", "/app/agent.pyc"]
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-I", "-S", "/app/healthcheck.pyc"]
    assert config["Labels"]["org.opencontainers.image.title"] == "vertice-registry-sidecar"
    assert config["Labels"]["org.opencontainers.image.version"] == agent.VERSION
    assert not config.get("StopSignal")  # SIGTERM
    assert not config.get("Volumes")


def test_people_can_look_around_inside(lab: Lab) -> None:
    lab.service()
    sidecar = lab.sidecar()
    for command, expected in {
        ("id",): r"^uid=1000\(sidecar\) gid=1000\(sidecar\)",
        ("ps",): r"\b1 (sidecar|1000) .*python -I /app/agent\.pyc",
        ("wget", "-qO-", "http://service:8080/health"): '"version":"1.0.0"',
        ("nslookup", "service"): r"Address.*: \d+\.\d+\.\d+\.\d+",
        ("ping", "-c", "1", "service"): "1 packets received",
        ("sh", "-c", "echo $((6 * 7))"): "^42$",
    }.items():
        code, said = sidecar.execute(*command)
        assert code == 0, said
        assert re.search(expected, said, re.MULTILINE), f"{command}: {said}"


@pytest.mark.parametrize("buildkit", [False, True], ids=["classic", "buildkit"])
def test_both_builders_make_the_same(
    client: docker.DockerClient, images: Images, image: str, buildkit: bool
) -> None:
    if buildkit and not has_buildx():
        pytest.skip("no buildx plugin")
    tag = images.build("buildkit" if buildkit else "classic", ROOT, buildkit=buildkit)
    built, usual = client.images.get(tag).attrs, client.images.get(image).attrs
    assert built["Size"] == usual["Size"]
    for key in ("User", "Entrypoint", "Healthcheck", "WorkingDir", "Env", "Labels"):
        assert built["Config"][key] == usual["Config"][key], key


def test_it_is_built_from_the_base_alone() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert f"\nARG BASE={BASE}\nFROM $BASE AS builder\n" in text
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["$BASE", "scratch"]
    # A `# syntax=` line fetches an image; the classic builder knows neither mounts nor heredocs.
    assert not re.search(r"^# *syntax|--mount|<<|^ADD |\bapk\b", text, re.MULTILINE)


def test_another_base_can_be_named(client: docker.DockerClient, images: Images, image: str) -> None:
    base = f"{RUN}-base:{images.run}"
    client.images.get(BASE).tag(base)
    images.tags.append(base)  # to be removed
    other = images.build("other-base", ROOT, "--build-arg", f"BASE={base}")
    assert sizes(client, other).on_disk == sizes(client, image).on_disk
    with pytest.raises(BuildError, match="/bin/sh"):  # there is nothing in it
        images.build("baseless", ROOT, "--build-arg", "BASE=scratch")


def test_no_file_of_the_build_names_an_architecture() -> None:
    names = re.compile(
        r"x86|amd64|aarch|arm(64|v\d|hf)|i[3-6]86|ppc|s390|riscv|ld-musl-", re.IGNORECASE
    )
    for file in (ROOT / "Dockerfile", *(ROOT / "docker").rglob("*.py")):
        assert not names.search(file.read_text()), file


def test_it_says_where_it_comes_from_if_the_build_is_told(
    client: docker.DockerClient, images: Images
) -> None:
    given = {"REVISION": "0123abc", "SOURCE": "https://git.example.org/sidecar"}
    options = [
        option for name, value in given.items() for option in ("--build-arg", f"{name}={value}")
    ]
    labels = client.images.get(images.build("sourced", ROOT, *options)).attrs["Config"]["Labels"]
    assert {name: labels[f"org.opencontainers.image.{name.lower()}"] for name in given} == given


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A copy of what the build needs, to be changed."""
    for name in CONTEXT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def test_a_label_with_another_version_than_the_agent_stops_the_build(
    images: Images, context: Path
) -> None:
    dockerfile = context / "Dockerfile"
    dockerfile.write_text(
        dockerfile.read_text().replace(f"VERSION={agent.VERSION}", "VERSION=9.9.9")
    )
    with pytest.raises(BuildError, match=r"smoke: python .*--version: expected 0 and 9\.9\.9"):
        images.build("mislabelled", context)


@pytest.mark.parametrize(
    ("script", "statement", "problem"),
    [
        ("agent.py", "import httpx", "No module named 'httpx'"),
        ("agent.py", "from json import nothing", "cannot import name 'nothing' from 'json'"),
        ("agent.py", "import idna.core", "No module named 'idna.core'"),
        ("healthcheck.py", "import ssl", "No module named 'ssl'"),
    ],
    ids=["package", "name", "behind a stand-in", "in the health check"],
)
def test_an_import_that_the_image_would_lack_stops_the_build(
    images: Images, context: Path, script: str, statement: str, problem: str
) -> None:
    source = context / script
    line = source.read_text().count("\n") + 1
    source.write_text(source.read_text() + statement + "\n")
    with pytest.raises(BuildError, match=rf'{script}", line {line}(?s:.)*{problem}'):
        images.build("lacking", context)


@pytest.mark.parametrize(
    "value", ["http://b\xfccher:80", "http://\xfc@registry", "http://h\u2100x"]
)
def test_a_host_that_is_not_ascii_is_refused(
    client: docker.DockerClient, run: str, image: str, value: str
) -> None:
    """The image has no Unicode tables: what asked for them would be a bug, not a bad setting."""
    settings = {"SERVICE_NAME": "a_service", "SERVICE_HOST": "service", "REGISTRY_URL": value}
    container = client.containers.run(image, detach=True, environment=settings, labels={RUN: run})
    try:
        assert container.wait(timeout=60)["StatusCode"] == 2
        assert b"Bad setting: REGISTRY_URL" in container.logs()
    finally:
        container.remove(force=True)
