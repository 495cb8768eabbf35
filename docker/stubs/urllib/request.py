"""Stands in for urllib.request, a whole HTTP client: the sidecar uses no proxies."""


def getproxies(_host: str = "") -> dict[str, str]:
    return {}


# No proxy is passed by either, and no header of digest authentication is read.
getproxies_environment = proxy_bypass = proxy_bypass_environment = parse_http_list = getproxies
