"""Stands in for certifi: requests asks it for one thing, the path of a CA bundle.

The real one finds its bundle through importlib.resources, a dozen modules at each start. With TLS the build
puts certifi's own bundle at this path; without TLS nothing lies there and nobody opens it.
"""


def where() -> str:
    """Returns the path of the CA bundle, the place where OpenSSL and Alpine keep theirs."""
    return "/etc/ssl/certs/ca-certificates.crt"
