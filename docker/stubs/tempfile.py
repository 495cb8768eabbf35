"""Stands in for tempfile: requests unpacks CA certificates to temporary files with it."""
