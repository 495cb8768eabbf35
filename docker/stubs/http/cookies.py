"""Stands in for http.cookies: requests would take a cookie of the user's. None is made."""


class Morsel: ...
