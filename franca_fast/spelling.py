r"""Names of files as text that any file, terminal or protocol takes, and back.

On Linux a file's name is bytes. Python reads those that are not UTF-8 as lone surrogates, which
keeps them exact but cannot be written as UTF-8. Here each such byte is spelled `\xe9`, as
Python itself would, and so are control characters, which would break lines and steer terminals;
all other names stay as they are.
"""

from __future__ import annotations

import codecs
import re

ERRORS = "franca_fast.spelled"
"""Name of the error handler with which `str.encode` spells what an encoding cannot write."""
_BYTES = "surrogateescape"  # how Python reads names
# Control characters, and a backslash of the name's own that would mislead.
_MISLEADING = re.compile(r"[\x00-\x1f\x7f]|\\(?=x[0-9a-f]{2})")
_SPELLED = re.compile(r"\\x([0-9a-f]{2})")


def spell(name: str) -> str:
    r"""A name as plain text; `unspell` gives back exactly the name.

    Example:
        >>> spell(b"caf\xe9.png".decode("utf-8", "surrogateescape"))
        'caf\\xe9.png'
        >>> spell("café.png")
        'café.png'
    """
    plain = _MISLEADING.sub(lambda match: f"\\x{ord(match[0]):02x}", name)
    return plain.encode("utf-8", ERRORS).decode("utf-8")


def unspell(text: str) -> str:
    r"""The name that `spell` spelled.

    Example:
        >>> unspell(spell("a\udce9")) == "a\udce9", unspell("a.png")
        (True, 'a.png')
    """
    if "\\x" not in text:
        return text
    name = _SPELLED.sub(lambda match: bytes([int(match[1], 16)]).decode("ascii", _BYTES), text)
    return name.encode("utf-8", _BYTES).decode("utf-8", _BYTES)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # A surrogate that stands for no byte can only come from elsewhere than a file's name.
    written = error.object[error.start : error.end].encode("utf-8", "surrogatepass")
    written = re.sub(rb"\xed([\xb2\xb3])([\x80-\xbf])", _byte, written)
    return "".join(f"\\x{byte:02x}" for byte in written), error.end


def _byte(surrogate: re.Match[bytes]) -> bytes:
    """The byte that a lone surrogate, encoded like a character, stands for."""
    return bytes([((surrogate[1][0] & 0x03) << 6) | (surrogate[2][0] & 0x3F)])


codecs.register_error(ERRORS, _spelled)
