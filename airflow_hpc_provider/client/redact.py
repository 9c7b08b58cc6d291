"""Keeping credentials out of words: presigned URLs and tokens, in error texts and in httpx's own log."""

from __future__ import annotations

import logging
import re

__all__ = ["guard_logs", "redact"]

_PATTERNS = (
    # A presigned URL is a credential: its query goes, whatever the storage calls its signature.
    (
        re.compile(r"(?i)(https?://[^\s\"'?<>]+)\?[^\s\"'<>]*(?:signature|sig|token|credential)=[^\s\"'<>]*"),
        r"\1?***",
    ),
    # A storage or a proxy may echo it in part, as in "Cannot PUT /b/k?partNumber=1&X-Amz-Signature=...".
    (
        re.compile(
            r"(?i)\b((?:x-(?:amz|goog)-)?(?:signature|credential|security-token)|awsaccesskeyid|(?:temp_url_)?sig|token)"
            r"=[^\s&\"'<>;]+"
        ),
        r"\1=***",
    ),
    (re.compile(r"eyJ[\w-]{5,}\.[\w-]+\.[\w-]*"), "***"),
    (re.compile(r"(?i)(bearer\s+)[\w.~+/-]+=*"), r"\1***"),
    # FirecREST echoes the token of a 401 in a header (seen as httpcore logs headers: bytes in a tuple).
    (re.compile(r"(?i)(b?'(?:auth-token|authorization)',\s*b?')[^']*"), r"\1***"),
)


def redact(text: str) -> str:
    """Replace what looks like a presigned query, a JWT or a bearer token by ``***``.

    :param text: any text
    :return: the text, safe to log
    """
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class _Redacting(logging.Filter):
    """Rewrite a record before any handler sees it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = redact(record.getMessage())
        record.args = ()
        return True


def guard_logs() -> None:
    """Make httpx and httpcore log without credentials; calling it again changes nothing.

    httpx logs every URL at INFO and httpcore every answer's headers at DEBUG. A logger's own filter sees
    only records made on that very logger, so each of them gets one.
    """
    for name in (
        "httpx",
        "httpcore.connection",
        "httpcore.http11",
        "httpcore.http2",
        "httpcore.proxy",
        "httpcore.socks",
    ):
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Redacting) for known in logger.filters):
            logger.addFilter(_Redacting())
