import pytest

from clusterucb_core.masking import masked, masked_address

ADDRESSES = {
    "http://127.0.0.1:5000/mlflow": "http://127.0.0.1:5000/mlflow",
    "http://me:hidden@host:5000/a": "http://***@host:5000/a",
    "http://hidden@host": "http://***@host",
    "https://me:hid/den@host/a": "https://***@host/a",
    "https://me:hid@den@host": "https://***@host",
    "https://host/a?token=hidden": "https://host/a?***",
    "postgresql://me:hidden@host/db?password=hidden": "postgresql://***@host/db?***",
    "sqlite:////srv/me/mlflow.db": "sqlite:////srv/me/mlflow.db",
    "./folder": "./folder",
    "": "",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_shown_without_what_is_secret(address):
    assert masked_address(address) == ADDRESSES[address]


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach http://me:hid%40den@host/a?key=mine now",
        "login of me with 'hid%40den' failed",
        "login with 'hid@den' failed",
        "url: /a?key=mine (refused)",
    ],
)
def test_an_error_is_quoted_without_what_is_secret(text):
    shown = masked(text, "http://me:hid%40den@host/a?key=mine")
    assert not [secret for secret in ("hid%40den", "hid@den", "key=mine") if secret in shown]
    assert "***" in shown


def test_a_short_password_garbles_no_message():
    assert masked("a host was not found at http://me:a@host", "http://me:a@host") == (
        "a host was not found at http://***@host"
    )
