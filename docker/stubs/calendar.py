"""Stands in for calendar: email and requests know one function of it. The real one loads locale."""

import datetime


def timegm(when: tuple[int, ...]) -> int:
    moment = datetime.datetime(*when[:6], tzinfo=datetime.UTC)  # type: ignore[misc,arg-type]
    return int(moment.timestamp())
