"""What is said of a credential that an API server does not accept."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from cluster_shim.kubernetes.api import credential_trouble
from cluster_shim.kubernetes.trust import CA_FILE, Trust


def test_a_client_certificate_that_has_expired_is_said_to_have_and_when(tmp_path: Path) -> None:
    Trust(tmp_path)
    file = tmp_path / CA_FILE
    shown = x509.load_pem_x509_certificate(file.read_bytes())
    end, begin = shown.not_valid_after_utc, shown.not_valid_before_utc
    said = credential_trouble(str(file), end + timedelta(days=1))
    assert f"the client certificate of the kubeconfig expired at {end:%Y-%m-%dT%H:%M:%SZ}" in said
    assert "is the clock right?" in credential_trouble(str(file), begin - timedelta(days=1))
    assert "does not accept the client certificate" in credential_trouble(str(file), begin + timedelta(days=1))


def test_a_token_is_named_where_there_is_no_certificate_and_a_broken_file_is_no_other_error(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert "does not accept the token" in credential_trouble(None, now)
    (tmp_path / "broken").write_text("x")
    for name in ("broken", "missing"):
        assert "does not accept the client certificate" in credential_trouble(str(tmp_path / name), now)
