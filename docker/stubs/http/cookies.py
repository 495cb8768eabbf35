"""Stands in for http.cookies: no cookie is made."""


class Morsel:
    """A cookie of the user's, which requests would take."""
