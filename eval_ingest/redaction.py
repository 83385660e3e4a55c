"""Secrets out of what is shown, logged or kept, and what is shown made fit to be shown.

A URL may carry a password or a signature, and a name in a dataset anything at all.
"""

import html
import json
import re
from urllib.parse import unquote

MAX_SHOWN = 4_000
"""Characters of a message: a value in it may be as long as its author liked."""

_LONG = 4
"""Shorter parts of a password would be found in any text."""
_PASSWORD = re.compile(r"(?<=://)[^/@\s'\"]*@")
_PARAMETER = re.compile(r"(?<=[?&])([^?=&\s'\"]{1,200})=[^&\s'\"#]+")
"""Each character is looked at a few times, however a text is made up."""
_SECRET_PARAMETER = re.compile(
    r"sig|token|key|secret|passw|pwd|credential|auth|session", re.IGNORECASE
)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|ya29\.[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|sk-(?:proj-|ant-)?[A-Za-z0-9]{32,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[^-]*-----END [A-Z ]*PRIVATE KEY-----)?"
)
"""Keys that are known by their form: of the Hub, code hosts, clouds, chats, models, and JWT."""
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
"""What a terminal obeys, what turns the direction of a text, and what can't be seen."""
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|PWD|CREDENTIAL|PRIVATE|AUTH|KEY", re.IGNORECASE)


def redacted(text: str) -> str:
    """A text without the passwords and signatures of URLs in it, and keys known by their form.

    >>> redacted("s3://key:secret@bucket/x and https://host/x?a=1&X-Amz-Signature=0f1e")
    's3://***@bucket/x and https://host/x?a=1&X-Amz-Signature=***'
    """
    return _TOKEN.sub("***", _PARAMETER.sub(_without_value, _PASSWORD.sub("***@", text)))


def _without_value(found: re.Match[str]) -> str:
    return f"{found[1]}=***" if _SECRET_PARAMETER.search(found[1]) else found[0]


def without_secrets_of(url: str, text: str) -> str:
    """A text in which nothing of a URL's password or signature stands, be it in the URL or not.

    >>> without_secrets_of("s3://key:secret@bucket/x", 'Invalid bucket name "key:secret@bucket"')
    'Invalid bucket name "***@bucket"'
    """
    passwords = [found.removesuffix("@") for found in _PASSWORD.findall(url)]
    signatures = [
        found[0].partition("=")[2]
        for found in _PARAMETER.finditer(url)
        if _SECRET_PARAMETER.search(found[1])
    ]
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


def spelled(text: str) -> str:
    r"""A text that any file can hold: of names on a disk, bytes that are no UTF-8 are written out.

    >>> print(spelled("d" + chr(0xDCE9) + "mo"))
    d\udce9mo
    """
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def shown(text: str) -> str:
    """A text that can be shown in a terminal: no secrets, no control characters, not too long."""
    if len(text) > 2 * MAX_SHOWN:  # cut before anything is looked for in it
        text = f"{text[: MAX_SHOWN * 3 // 4]} ... {text[-MAX_SHOWN // 4 :]}"
    plain = _CONTROLS.sub(_escaped, spelled(redacted(text)))
    if len(plain) <= MAX_SHOWN:
        return plain
    return f"{plain[: MAX_SHOWN * 3 // 4]} ... {plain[-MAX_SHOWN // 4 :]}"


def _escaped(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()


def on_one_line(text: str, most: int = 200) -> str:
    r"""A text from a source as part of a line in a terminal, cut to so many characters.

    >>> print(on_one_line(chr(27) + "[2J" + chr(10)))
    \x1b[2J\x0a
    """
    cut = text if len(text) <= most else f"{text[: most - 3]}..."
    return shown(cut).replace("\n", "\\x0a").replace("\t", "\\x09")


def in_lines(text: str) -> str:
    r"""A message of a log or a tick, of whole sentences: as long as messages may be, in one line.

    >>> print(in_lines("crops" + chr(27) + "[2J: " + chr(10) + "no windows"))
    crops\x1b[2J: \x0ano windows
    """
    return on_one_line(text, MAX_SHOWN)


def in_json(text: str) -> str:
    """JSON as it may be shown in a terminal: what one would obey is escaped as JSON does it."""
    return _CONTROLS.sub(lambda found: json.dumps(found.group())[1:-1], text)


def in_markdown(text: str, most: int = 200) -> str:
    r"""A text from a source as plain words in Markdown: no link, picture, HTML or new line in it.

    >>> print(in_markdown("![x](http://host/x.png) <b> a_b"))
    !\[x\](http&#58;//host/x.png) &lt;b&gt; a_b
    """
    return _MARKDOWN.sub(_as_words, on_one_line(text, most))


def in_html(text: str, most: int = 2_000) -> str:
    """A text from a source as plain words in HTML, in an element or in a quoted attribute.

    >>> in_html('<img src="x">')
    '&lt;img src=&quot;x&quot;&gt;'
    """
    return html.escape(on_one_line(text, most))


_MARKDOWN = re.compile(
    r"[\\`*\[\]<>&|~@]|(?<!\w)_|_(?!\w)|(?:https?|ftp)://|(?:mailto|xmpp):|www\.|^[#+=-]",
    re.IGNORECASE,
)
"""What means something in Markdown, such addresses too as become links by themselves.

A bucket's doesn't, and lists show it as it is written here, with `&#58;` where that stood in it.
"""


def _as_words(found: re.Match[str]) -> str:
    text = found.group()
    if len(text) > 1:
        return text.replace(":", "&#58;").replace(".", "&#46;")
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;"}.get(text, f"\\{text}")
