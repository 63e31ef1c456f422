"""`format`: the formats that are enforced, each as a pattern and a largest length."""

from __future__ import annotations

_HOUR_MINUTE = r"(?:[01]\d|2[0-3]):[0-5]\d"
_TIME = rf"{_HOUR_MINUTE}:[0-5]\d(?:\.\d{{1,9}})?(?:Z|[+-]{_HOUR_MINUTE})"
_YEAR = r"(?:\d{3}[1-9]|\d\d[1-9]0|\d[1-9]00|[1-9]000)"
_DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
_LEAP = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP})"
_NUMBER = r"(?:0|[1-9]\d{0,8})"
_DURATION_TIME = (
    rf"T(?:{_NUMBER}H(?:{_NUMBER}M(?:{_NUMBER}S)?)?|{_NUMBER}M(?:{_NUMBER}S)?|{_NUMBER}S)"
)
_DURATION_DATE = (
    rf"(?:{_NUMBER}Y(?:{_NUMBER}M(?:{_NUMBER}D)?)?|{_NUMBER}M(?:{_NUMBER}D)?|{_NUMBER}D)"
)
_LETTER = "[a-zA-Z0-9]"
# No two hyphens as third and fourth letter: such labels are encoded ones with rules of their own.
_LABEL = (
    rf"(?:{_LETTER}|{_LETTER}[a-zA-Z0-9-]?{_LETTER}"
    rf"|{_LETTER}[a-zA-Z0-9-](?:{_LETTER}[a-zA-Z0-9-]|-{_LETTER})[a-zA-Z0-9-]{{0,58}}{_LETTER}"
    rf"|{_LETTER}[a-zA-Z0-9-]{_LETTER}{_LETTER})"
)
_NAME_OF_HOST = rf"{_LETTER}+(?:-{_LETTER}+)*"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
_ATEXT = r"[a-zA-Z0-9!#$%&'*+\-/=?^_`{|}~]"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_HEX = "[0-9a-fA-F]"
_GROUP = f"{_HEX}{{1,4}}"
_IPV6 = "|".join(
    [
        f"(?:{_GROUP}:){{7}}{_GROUP}",
        *(
            f"(?:{_GROUP}(?::{_GROUP}){{0,{before - 1}}})?::(?:{_GROUP}(?::{_GROUP}){{0,{6 - before}}})?"
            for before in range(1, 7)
        ),
        f"(?:{_GROUP}(?::{_GROUP}){{0,6}})?::",
    ]
)
_CHAR = rf"(?:[a-zA-Z0-9\-._~!$&'()*+,;=:@]|%{_HEX}{{2}})"
_NAME = rf"(?:[a-zA-Z0-9\-._~!$&'()*+,;=]|%{_HEX}{{2}})"
_URI = (
    rf"[a-zA-Z][a-zA-Z0-9+\-.]*:(?://(?:(?:{_NAME}|:)*@)?{_NAME}*(?::\d{{0,5}})?(?:/{_CHAR}*)*"
    rf"|/(?:{_CHAR}+(?:/{_CHAR}*)*)?|{_CHAR}+(?:/{_CHAR}*)*)"
    rf"(?:\?(?:{_CHAR}|[/?])*)?(?:#(?:{_CHAR}|[/?])*)?"
)
_POINTER = r"(?:/(?:[^~/]|~[01])*)*"

FORMATS: dict[str, tuple[str, int | None]] = {
    "date": (_DATE, None),
    "time": (_TIME, None),
    "date-time": (f"{_DATE}T{_TIME}", None),
    "duration": (rf"P(?:{_DURATION_DATE}(?:{_DURATION_TIME})?|{_DURATION_TIME}|{_NUMBER}W)", None),
    "uuid": (rf"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}", None),
    "email": (rf"{_ATEXT}+(?:\.{_ATEXT}+)*@{_NAME_OF_HOST}(?:\.{_NAME_OF_HOST})*", None),
    "hostname": (_HOST, 253),
    "ipv4": (rf"(?:{_BYTE}\.){{3}}{_BYTE}", None),
    "ipv6": (_IPV6, None),
    "uri": (_URI, None),
    "json-pointer": (_POINTER, None),
}
"""Without leap seconds, years 0000, fractions of a second beyond nanoseconds, and encoded hosts."""
