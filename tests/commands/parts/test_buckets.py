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


@pytest.mark.parametrize(("cloud", "scheme"), [("bucket", "gs"), ("s3_bucket", "s3")])
def test_a_bucket_that_does_not_exist_is_told(request, cloud, scheme):
    request.getfixturevalue(cloud)
    with pytest.raises(UserError, match="no such bucket or object.*bucket"), bucket_errors():
        write_bytes(f"{scheme}://no-such-bucket/x", b"")


@pytest.mark.parametrize("act", ["read", "write"])
def test_credentials_of_s3_that_do_not_suffice_are_told(s3_bucket, act):
    s3_bucket.fault = lambda method, path: 403
    with pytest.raises(UserError, match="do not suffice.*s3:PutObject.*AWS_ACCESS_KEY_ID"), bucket_errors():
        if act == "read":
            as_path("s3://bucket-a/x").read_bytes()
        else:
            write_bytes("s3://bucket-a/x", b"")


def test_missing_credentials_of_s3_name_the_variable(s3_bucket, monkeypatch, tmp_path):
    import s3fs

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(UserError, match="asks for credentials.*set AWS_ACCESS_KEY_ID"), bucket_errors():
            write_bytes("s3://bucket-a/x", b"")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


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
