"""Strict, resumable HTTP/1.1 request heads, and the checks for fields that an application sets.

It is C level (`_http1.pxd`); its Python face is `_http1_python`.
"""

def reason_text(reason: int) -> str:
    """The sentence for a refused head's reason code: what is wrong, and what would be right.

    :raises UsageError: there is no such code; they are numbered from 0 (nothing is wrong) without a gap.
    """
