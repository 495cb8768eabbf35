"""The size of an image.

On disk is the sum of the files in all layers, what `docker images` shows. Compressed is each layer
through gzip -9, about what a registry stores and a host downloads.
"""

import gzip
import io
import json
import tarfile
from typing import NamedTuple

import docker


class Sizes(NamedTuple):
    """The size of an image in bytes."""

    on_disk: int
    compressed: int

    def __str__(self) -> str:
        return " / ".join(f"{size / 1e6:.2f}" for size in self) + " MB"


DEFAULT_LIMIT = Sizes(9_400_000, 4_000_000)
TLS_LIMIT = Sizes(14_200_000, 6_100_000)


def sizes(client: docker.DockerClient, image: str) -> Sizes:
    """Return the sizes of an image, by its id or name."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(client.images.get(image).save()))) as saved:
        layers = json.loads(content_of(saved, "manifest.json"))[0]["Layers"]
        each = [layer_sizes(content_of(saved, layer)) for layer in layers]
    on_disk, compressed = zip(*each, strict=True)
    return Sizes(sum(on_disk), sum(compressed))


def content_of(saved: tarfile.TarFile, name: str) -> bytes:
    """Return a file of the archive; where the engine linked a layer to its twin, that."""
    file = saved.extractfile(name)
    assert file is not None, f"docker save: {name} is no file"
    return file.read()


def layer_sizes(content: bytes) -> Sizes:
    """Return the sizes of a layer as the engine saves it: tar, compressed on newer engines."""
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    with tarfile.open(fileobj=io.BytesIO(content)) as files:
        return Sizes(sum(file.size for file in files), len(gzip.compress(content, 9)))
