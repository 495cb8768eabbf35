"""Stands in for hashlib: requests' digest authentication, urllib3's fingerprints; not settable."""
