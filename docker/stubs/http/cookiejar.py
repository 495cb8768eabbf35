"""Stands in for http.cookiejar: the sidecar keeps no cookies, and looks for none in an answer."""

from collections.abc import Iterator


class CookieJar:
    """A jar that is always empty."""

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def extract_cookies(self, *_: object) -> None:
        """Take no cookie out of an answer."""

    add_cookie_header = extract_cookies


Cookie = CookiePolicy = object
