"""Makes certificates for the tests."""

from pathlib import Path

import trustme


def certificate(directory: Path, host: str) -> tuple[tuple[str, str], str]:
    """Make a certificate for a host.

    Return its (certificate, key) files and that of its authority.
    """
    authority = trustme.CA()
    issued = authority.issue_cert(host)
    paths = [str(directory / f"{host}-{name}.pem") for name in ("cert", "key", "ca")]
    issued.cert_chain_pems[0].write_to_path(paths[0])
    issued.private_key_pem.write_to_path(paths[1])
    authority.cert_pem.write_to_path(paths[2])
    return (paths[0], paths[1]), paths[2]
