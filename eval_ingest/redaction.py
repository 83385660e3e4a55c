"""Secrets out of what is shown, logged or kept, and what is shown made fit to be shown.

A URL may carry a password or a signature, and a name in a dataset anything at all.
"""

import re
from urllib.parse import unquote

MAX_SHOWN = 4_000
"""Characters of a message: a value in it may be as long as its author liked."""

_LONG = 4
"""Shorter parts of a password would be found in any text."""
_PASSWORD = re.compile(r"(?<=://)[^/@\s'\"]*@")
_PARAMETER = re.compile(
    r"(?<=[?&])([^=&\s'\"]*(?:sig|signature|token|key|secret|passw|pwd|credential|auth|session)"
    r"[^=&\s'\"]*)=[^&\s'\"#]+",
    re.IGNORECASE,
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|PWD|CREDENTIAL|PRIVATE|AUTH|KEY", re.IGNORECASE)


def redacted(text: str) -> str:
    """A text without the passwords and signatures of URLs in it.

    >>> redacted("s3://key:secret@bucket/x and https://host/x?a=1&X-Amz-Signature=0f1e")
    's3://***@bucket/x and https://host/x?a=1&X-Amz-Signature=***'
    """
    return _PARAMETER.sub(r"\1=***", _PASSWORD.sub("***@", text))


def without_secrets_of(url: str, text: str) -> str:
    """A text in which nothing of a URL's password or signature stands, be it in the URL or not.

    >>> without_secrets_of("s3://key:secret@bucket/x", 'Invalid bucket name "key:secret@bucket"')
    'Invalid bucket name "***@bucket"'
    """
    passwords = [found.removesuffix("@") for found in _PASSWORD.findall(url)]
    signatures = [found[0].partition("=")[2] for found in _PARAMETER.finditer(url)]
    parts = [part for whole in passwords for part in whole.split(":", 1)]
    for secret in [*passwords, *signatures, *(part for part in parts if len(part) >= _LONG)]:
        if secret:
            text = text.replace(secret, "***").replace(unquote(secret), "***")
    return text


def holds_secret(url: str) -> bool:
    """True for a URL with a password or a signature."""
    return redacted(url) != url


def names_secret(variable: str) -> bool:
    """True for the names of environment variables that usually hold secrets."""
    return _SECRET_NAME.search(variable) is not None


def shown(text: str) -> str:
    """A text that can be shown in a terminal: no secrets, no control characters, not too long."""
    plain = redacted(text).encode(errors="backslashreplace").decode()
    plain = _CONTROLS.sub(lambda found: f"\\x{ord(found.group()):02x}", plain)
    if len(plain) <= MAX_SHOWN:
        return plain
    return f"{plain[: MAX_SHOWN * 3 // 4]} ... {plain[-MAX_SHOWN // 4 :]}"
