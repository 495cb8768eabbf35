"""Stands in for encodings.idna, the codec that getaddrinfo(), ssl and requests ask for by name.

Settings take host names in ASCII alone. The real one loads all of Unicode, 1.2 MB.
"""

import codecs


def getregentry() -> codecs.CodecInfo:
    return codecs.CodecInfo(codecs.ascii_encode, codecs.ascii_decode, name="idna")
