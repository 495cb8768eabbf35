"""Builds the image's variants and a naive one, and prints their sizes as a Markdown table.

    python tests/bench/image_sizes.py

Needs a Docker engine, the base image and PyPI; takes about a minute. On disk is the sum of the files in all
layers, what `docker images` shows. Compressed is each layer through gzip -9, about what a registry stores and
a host downloads. The naive image is the same two scripts on the whole base with `pip install`.
"""
from __future__ import annotations

import gzip
import json
import subprocess
import tarfile
import tempfile
import uuid
from pathlib import Path
from typing import IO, NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
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


VARIANTS = (
    Variant("default", limit=Sizes(10_800_000, 4_800_000)),
    Variant("`--build-arg TLS=1`", ("--build-arg", "TLS=1"), limit=Sizes(16_000_000, 6_900_000)),
    Variant("naive: the base and `pip install`", dockerfile=NAIVE),
)


def build(variant: Variant, tag: str) -> None:
    """Builds a variant under the given tag. Raises CalledProcessError, with the build's output shown."""
    command = ["docker", "build", "--quiet", "--tag", tag, *variant.build]
    if variant.dockerfile is not None:
        command += ["--file", "-"]
    subprocess.run([*command, str(PROJECT)], input=variant.dockerfile, stdout=subprocess.DEVNULL, text=True,
                   check=True)


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


def sizes(image: str) -> Sizes:
    """Returns the sizes of an image, by its id or name."""
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(["docker", "save", "--output", file.name, image], check=True)
        with tarfile.open(file.name) as saved:
            layers = json.load(content_of(saved, "manifest.json"))[0]["Layers"]
            each = [layer_sizes(content_of(saved, layer)) for layer in layers]
    return Sizes(sum(one.on_disk for one in each), sum(one.compressed for one in each))


def content_of(saved: tarfile.TarFile, name: str) -> IO[bytes]:
    """Returns a file of the archive, opened; where `docker save` linked a layer to its twin, the twin."""
    file = saved.extractfile(name)
    assert file is not None, f"docker save: {name} is no file"
    return file


def megabytes(size: int) -> str:
    """Returns a size as people read it."""
    return f"{size / 1e6:.2f} MB"


def measure(variant: Variant) -> Sizes:
    """Builds a variant, returns its sizes, and removes it again."""
    tag = f"sidecar-sizes:{uuid.uuid4().hex}"  # its own, so that removing it leaves other names of the image
    build(variant, tag)
    try:
        return sizes(tag)
    finally:
        subprocess.run(["docker", "rmi", tag], stdout=subprocess.DEVNULL, check=True)


def main() -> int:
    """Prints the table; returns 1 where a variant is over its limit."""
    print("| image | on disk | at most | compressed | at most |\n|---|---|---|---|---|")
    over = False
    for variant in VARIANTS:
        got = measure(variant)
        limits = [megabytes(limit) for limit in variant.limit] if variant.limit else ["-", "-"]
        cells = (variant.name, megabytes(got.on_disk), limits[0], megabytes(got.compressed), limits[1])
        print(f"| {' | '.join(cells)} |")
        if variant.limit:
            over |= any(size > limit for size, limit in zip(got, variant.limit, strict=True))
    return 1 if over else 0


if __name__ == "__main__":
    raise SystemExit(main())
