"""Which texts may be handed to PROJ and GDAL as a CRS: codes, WKT and PROJ text, and no others.

Both libraries take a CRS from anything that they find, a URL or a file's path too. Here a text is
looked at before they are, in time that grows with its length alone. Parsing it is theirs.
"""

import re
from collections.abc import Iterator
from typing import Any

MAX_CHARACTERS = 20_000
"""WKT of real systems, with all their members, has at most a few thousand."""
MAX_DEPTH = 32

_CODE = re.compile(r"(?:EPSG|ESRI|OGC|IGNF|IAU_2015):[A-Za-z0-9]{1,16}", re.IGNORECASE)
_URN = re.compile(r"urn:ogc:def:crs:(?:EPSG|OGC|ESRI):[0-9.]{0,8}:[A-Za-z0-9]{1,16}", re.IGNORECASE)
_WKT = re.compile(
    r"\s*(?:PROJCS|GEOGCS|GEOCCS|COMPD_CS|VERT_CS|LOCAL_CS|PROJCRS|PROJECTEDCRS|GEOGCRS|"
    r"GEOGRAPHICCRS|GEODCRS|GEODETICCRS|COMPOUNDCRS|ENGCRS|ENGINEERINGCRS|BOUNDCRS)\s*\["
)
_STEP = re.compile(r"\+[A-Za-z_0-9]{1,24}(?:=[A-Za-z0-9_.,@+-]{0,64})?")
_VALUE = re.compile(r"(\w{0,24})=([^ \"\]\u201c\u201d]*)")
"""`key=value` of PROJ text, which may stand in WKT too: as a method's name, or as an extension."""
_NUMBERS = re.compile(r"[-+.]?[0-9][-+.,0-9dEerRNSWnsw]*")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,24}")
_TAKES_A_WORD = frozenset(
    {"axis", "datum", "ellps", "mode", "o_proj", "orient", "pm", "proj", "shape", "sweep", "title",
     "type", "units", "vunits"}
)  # fmt: skip
"""Keys of PROJ text whose values aren't numbers. PROJ looks those of all others up as files."""
_NAMES_A_FILE = re.compile(
    r"grids?=|_grids|catalog=|file=|model=|parameterfile|init=|pipeline|proj=[a-z]*gridshift"
)
"""In lower case: what makes PROJ open a grid or another file."""


def is_crs_text(text: Any) -> bool:
    """True for a code such as EPSG:32630, WKT, or PROJ text, none of which names a file or URL.

    >>> is_crs_text("EPSG:32630"), is_crs_text("+proj=utm +zone=30 +datum=WGS84")
    (True, True)
    >>> is_crs_text("http://localhost/crs"), is_crs_text("/vsicurl/http://localhost/crs")
    (False, False)
    """
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        return False
    if _CODE.fullmatch(text) or _URN.fullmatch(text):
        return True
    plain = " ".join(text.split()).replace(" =", "=").replace("= ", "=")
    plain = plain.replace("+nadgrids=@null", "").lower()
    if not text.isprintable() and not text.replace("\n", "").replace("\t", "").isprintable():
        return False
    if _NAMES_A_FILE.search(plain) or not all(map(_is_plain, _VALUE.finditer(plain))):
        return False
    if _WKT.match(text):
        return text.rstrip().endswith("]") and not deeper_than(MAX_DEPTH, text, "[]")
    steps = text.split()
    return "+proj=" in text and all(_STEP.fullmatch(step) for step in steps)


def cites_others(data: bytes) -> bool:
    """True for a GeoTIFF with WKT in a citation, as ESRI writes it, that isn't such a text.

    GDAL makes a CRS of it when it opens the raster, and PROJ looks up the files that it names.
    """
    for found in re.finditer(rb"ESRI PE String = ", data):
        text = data[found.end() : found.end() + MAX_CHARACTERS]
        if not is_crs_text(re.split(rb"[\0|]", text)[0].decode("latin-1")):
            return True
    return False


def _is_plain(found: re.Match[str]) -> bool:
    """True for a value of PROJ text that is a number, or one of the words that its key may have."""
    form = _WORD if found[1] in _TAKES_A_WORD else _NUMBERS
    return form.fullmatch(found[2]) is not None


def deeper_than(depth: int, text: str, brackets: str) -> bool:
    """True if the brackets of a text go deeper than that; quoted ones count too.

    >>> deeper_than(1, "a[b[c]][d]", "[]"), deeper_than(2, "a[b[c]][d]", "[]")
    (True, False)
    """
    opening = brackets[0]
    if text.count(opening) <= depth:
        return False
    deep = 0
    for found in re.finditer(f"[{re.escape(brackets)}]", text):
        deep += 1 if found.group() == opening else -1
        if deep > depth:
            return True
    return False


def named_crs(content: Any) -> Iterator[Any]:
    """Every CRS that rslearn would take from a JSON file of a window, whatever it is.

    A sidecar has it in its projection, GeoJSON in its properties or as its `crs`, and the file
    beside tiles of GeoJSON at the top.
    """
    if not isinstance(content, dict):
        return
    for holder in (content, content.get("projection"), content.get("properties")):
        if isinstance(holder, dict) and "crs" in holder:
            found = holder["crs"]
            inner = found.get("properties") if isinstance(found, dict) else None
            yield inner.get("name") if isinstance(inner, dict) else found
