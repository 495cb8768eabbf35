"""Stands in for http.cookiejar: the sidecar keeps no cookies, and looks for none in an answer."""

from collections.abc import Iterator


class CookieJar:
    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def extract_cookies(self, *_: object) -> None: ...

    add_cookie_header = extract_cookies


Cookie = CookiePolicy = object
