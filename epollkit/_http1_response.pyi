"""HTTP/1.1 response heads, and the bodies of requests and responses.

It is C level (`_http1_response.pxd`); its Python face is `_http1_python`.
"""

def response_reason_text(reason: int) -> str:
    """The sentence for the reason code of a refused response head, or of a refused body.

    :raises UsageError: there is no such code; they are numbered from 0 (nothing is wrong) without a gap.
    """
