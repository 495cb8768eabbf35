"""Tests of the image and of containers made from it.

On a real Docker engine (`pytest -m docker`).
"""
