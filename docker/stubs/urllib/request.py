"""Stands in for urllib.request, which tells requests of proxies: the sidecar uses none.

The real one is a whole HTTP client, and loads tempfile and shutil.
"""


def getproxies(_host: str = "") -> dict[str, str]:
    """Return the proxies by scheme: none."""
    return {}


# No proxy is passed by either, and no header of digest authentication is read.
getproxies_environment = proxy_bypass = proxy_bypass_environment = parse_http_list = getproxies
