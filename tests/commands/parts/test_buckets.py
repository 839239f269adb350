"""A bucket's refusals reach people as one line that says what to do."""

import asyncio

import pytest

from imagen_jax.commands.parts.buckets import bucket_errors
from imagen_jax.errors import UserError
from imagen_jax.files import as_path, write_bytes


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "asks for credentials.*set GOOGLE_APPLICATION_CREDENTIALS to the file of a key"),
        (403, "credentials do not suffice.*Storage Object User"),
    ],
)
@pytest.mark.parametrize("act", ["read", "write"])
def test_credentials_that_are_missing_or_do_not_suffice_are_told(bucket, status, message, act):
    bucket.fault = lambda method, path: status
    with pytest.raises(UserError, match=message), bucket_errors():
        if act == "read":
            as_path("gs://bucket-a/x").read_bytes()
        else:
            write_bytes("gs://bucket-a/x", b"")


def test_a_bucket_that_does_not_exist_is_told(bucket):
    with pytest.raises(UserError, match="no such bucket or object.*no-such-bucket"), bucket_errors():
        write_bytes("gs://no-such-bucket/x", b"")


def test_a_server_that_stays_down_is_told(bucket, monkeypatch):
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(0))  # The pauses between attempts grow to minutes.
    bucket.fault = lambda method, path: 503
    with (
        pytest.raises(UserError, match="does not answer as it should.*503.*same command again"),
        bucket_errors(),
    ):
        write_bytes("gs://bucket-a/x", b"")


def test_what_comes_from_elsewhere_passes(bucket):
    with pytest.raises(FileNotFoundError), bucket_errors():
        open("/none/such")
