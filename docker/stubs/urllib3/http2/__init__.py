"""Stands in for urllib3.http2, whose only task is to put HTTP/2 in where the package h2 is installed.

It is not, and the real one loads importlib.metadata, csv, zipfile and pathlib at each start to be able to
look. The module `probe` beside it is urllib3's own.
"""
