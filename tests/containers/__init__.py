"""Tests of the image and of containers made from it, on a real Docker engine (`pytest -m docker`)."""
