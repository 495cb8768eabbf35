"""Builds the image's variants and a naive one, and prints their sizes as a Markdown table.

    python tests/bench/image_sizes.py

Needs a Docker engine, the base image and PyPI; takes about a minute. On disk is the sum of the files in all
layers, what `docker images` shows. Compressed is each layer through gzip -9, about what a registry stores and
a host downloads. The naive image is the same two scripts on the whole base with `pip install`.
"""

from __future__ import annotations

import gzip
import json
import sys
import tarfile
import tempfile
import uuid
from pathlib import Path
from typing import IO, NamedTuple

import docker

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from containers.engine import Images, connect
from harness import ROOT

NAIVE = """\
FROM python:3.11-alpine
COPY requirements.txt agent.py healthcheck.py /app/
RUN pip install --no-cache-dir -r /app/requirements.txt
ENTRYPOINT ["python", "/app/agent.py"]
"""


class Sizes(NamedTuple):
    """The size of an image in bytes."""

    on_disk: int
    compressed: int


class Variant(NamedTuple):
    """An image to measure: its name in the table, what `docker build` gets, and what it may weigh at most."""

    name: str
    build: tuple[str, ...] = ()
    dockerfile: str | None = None
    limit: Sizes | None = None


DEFAULT_LIMIT = Sizes(10_800_000, 4_800_000)
TLS_LIMIT = Sizes(16_000_000, 6_900_000)
VARIANTS = (
    Variant("default", limit=DEFAULT_LIMIT),
    Variant("`--build-arg TLS=1`", ("--build-arg", "TLS=1"), limit=TLS_LIMIT),
    Variant("naive: the base and `pip install`", dockerfile=NAIVE),
)


def measure(client: docker.DockerClient, variant: Variant) -> Sizes:
    """Builds a variant, returns its sizes, and removes it again."""
    images = Images(client, uuid.uuid4().hex)
    try:
        return sizes(client, images.build("sizes", ROOT, *variant.build, dockerfile=variant.dockerfile))
    finally:
        images.remove()


def sizes(client: docker.DockerClient, image: str) -> Sizes:
    """Returns the sizes of an image, by its id or name."""
    with tempfile.TemporaryFile() as file:
        file.writelines(client.images.get(image).save())
        file.seek(0)
        with tarfile.open(fileobj=file) as saved:
            layers = json.load(content_of(saved, "manifest.json"))[0]["Layers"]
            each = [layer_sizes(content_of(saved, layer)) for layer in layers]
    return Sizes(sum(one.on_disk for one in each), sum(one.compressed for one in each))


def content_of(saved: tarfile.TarFile, name: str) -> IO[bytes]:
    """Returns a file of the archive, opened; where the engine linked a layer to its twin, the twin."""
    file = saved.extractfile(name)
    assert file is not None, f"docker save: {name} is no file"
    return file


def layer_sizes(layer: IO[bytes]) -> Sizes:
    """Returns the sizes of one layer as the engine saves it: a tar file, compressed on newer engines."""
    content = layer.read()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    with tempfile.TemporaryFile() as plain:
        plain.write(content)
        plain.seek(0)
        with tarfile.open(fileobj=plain) as files:
            return Sizes(sum(file.size for file in files), len(gzip.compress(content, 9)))


def megabytes(size: int) -> str:
    """Returns a size as people read it."""
    return f"{size / 1e6:.2f} MB"


def main() -> int:
    """Prints the table; returns 1 where a variant is over its limit."""
    client = connect()
    print("| image | on disk | at most | compressed | at most |\n|---|---|---|---|---|")
    over = False
    for variant in VARIANTS:
        got = measure(client, variant)
        limits = [megabytes(limit) for limit in variant.limit] if variant.limit else ["-", "-"]
        cells = (variant.name, megabytes(got.on_disk), limits[0], megabytes(got.compressed), limits[1])
        print(f"| {' | '.join(cells)} |")
        if variant.limit:
            over |= any(size > limit for size, limit in zip(got, variant.limit, strict=True))
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
