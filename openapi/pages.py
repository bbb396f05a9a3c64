"""The page at /docs: every kind, field and operation of this controller, read from its own OpenAPI documents.

One file without a single outside address, because a site may have no way out. Its style and script are admitted by digest and
nothing else is (Content-Security-Policy); what it shows is written as text, never as HTML.
"""

import base64
import hashlib
from importlib import resources

_STYLE = resources.files("openapi").joinpath("docs.css").read_text("utf-8")
_SCRIPT = resources.files("openapi").joinpath("docs.js").read_text("utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; style-src {_digest(_STYLE)}; script-src {_digest(_SCRIPT)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Banyan API</title><style>{_STYLE}</style></head>
<body><nav aria-label="Kinds"><h1>Banyan API</h1><input id="find" type="search" placeholder="Find a kind or field" aria-label="Find">
<div id="kinds"></div></nav><main id="main"><p>Reading the documents of this controller …</p></main>
<script>{_SCRIPT}</script></body></html>
""".encode()
