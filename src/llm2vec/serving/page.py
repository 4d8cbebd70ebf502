"""The page at `/`, to try the encoders: compare sentences, and search in lines of text.

It loads nothing from outside, and its policy lets the browser run only its own script and style.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import HTMLResponse

_PAGE = Path(__file__).parents[1] / "assets" / "serve.html"


@cache
def page() -> HTMLResponse:
    """The page, with the content security policy that a browser enforces."""
    html = _PAGE.read_text(encoding="utf8")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_digest(html, 'script')}",
            f"style-src {_digest(html, 'style')}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
    return HTMLResponse(
        html,
        headers={
            "content-security-policy": policy,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
        },
    )


def _digest(html: str, element: str) -> str:
    """The digest of an inline script or style, as a policy names it."""
    found = re.search(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    content = found.group(1) if found is not None else ""
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
