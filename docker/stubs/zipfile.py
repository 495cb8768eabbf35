"""Stands in for zipfile: requests takes CA certificates out of archives with it, here a file."""
