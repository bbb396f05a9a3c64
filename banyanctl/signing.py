"""AWS signature version 4 for reading from S3, and from whatever speaks like it.

After "Authenticating Requests: Using the Authorization Header" of the S3 API reference; the body of a GET is empty. The secret never
leaves this module.
"""

import hashlib
import hmac
import urllib.parse
from collections.abc import Mapping
from datetime import UTC, datetime

from msgspec import Struct

EMPTY = hashlib.sha256(b"").hexdigest()


class Keys(Struct, frozen=True):
    identity: str
    secret: str
    session: str = ""

    def __repr__(self) -> str:
        return f"Keys({self.identity!r}, …)"

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Keys | None":
        """None: nothing is signed, for a bucket that anybody may read."""
        identity, secret = environment.get("AWS_ACCESS_KEY_ID", ""), environment.get("AWS_SECRET_ACCESS_KEY", "")
        return cls(identity, secret, environment.get("AWS_SESSION_TOKEN", "")) if identity and secret else None


def headers(url: str, keys: Keys, region: str, *, extra: Mapping[str, str] | None = None, at: datetime | None = None) -> Mapping[str, str]:
    """What a GET of ``url`` sends; ``extra`` is signed, too."""
    parts = urllib.parse.urlsplit(url)
    moment = (at or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    signed = {"x-amz-content-sha256": EMPTY, "x-amz-date": moment}
    signed |= {"x-amz-security-token": keys.session} if keys.session else {}
    signed |= {name.lower(): value for name, value in (extra or {}).items()}
    every = sorted({**signed, "host": parts.netloc}.items())
    names = ";".join(name for name, _ in every)
    query = "&".join(sorted(part if "=" in part else f"{part}=" for part in parts.query.split("&") if part))
    lines = "".join(f"{name}:{value.strip()}\n" for name, value in every)
    canonical = f"GET\n{parts.path or '/'}\n{query}\n{lines}\n{names}\n{EMPTY}"
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{keys.secret}".encode()
    for part in (moment[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"AWS4-HMAC-SHA256 Credential={keys.identity}/{scope},SignedHeaders={names},Signature={signature}"
    return {**signed, "Authorization": credential}
