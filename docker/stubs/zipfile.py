"""Stands in for zipfile, which requests imports to unpack CA certificates from a zipped installation.

It looks only where no file lies at the certificates' path, and needs to hear that nothing is a zip file.
"""


def is_zipfile(_filename: str) -> bool:
    """Returns False: no path on this image leads into an archive."""
    return False
