"""The badge is based on real sockets of this process, and on addresses as the operating system writes them."""

from __future__ import annotations

import socket
from contextlib import closing

import psutil
import pytest

from apps.access.connections import Watch, remote_peers


def own_address() -> str:
    """An address of this machine that is not the loopback's."""
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not found:
        pytest.skip("this machine has no address but the loopback's")
    return str(found[0])


@pytest.mark.parametrize(
    ("address", "is_remote"),
    [
        ("127.0.0.1", False),
        ("127.255.255.254", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("128.0.0.1", True),
        ("192.168.0.2", True),
        ("::ffff:10.0.0.1", True),
        ("fe80::1%eth0", True),
        ("2001:db8::1", True),
    ],
)
def test_only_the_loopback_is_this_machine(address: str, is_remote: bool) -> None:
    assert bool(remote_peers([(address, 80)])) == is_remote


def test_a_connection_on_the_loopback_is_none_that_left() -> None:
    watch = Watch()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        watch.look()
    assert (watch.state, watch.peers) == ("private", [])
    assert watch.text == "No connection has left this machine"


def test_a_peer_off_the_loopback_is_named_and_stays_named() -> None:
    watch = Watch()
    with (
        socket.create_server((own_address(), 0)) as listener,
        closing(socket.create_connection(listener.getsockname())),
    ):
        address, port = listener.getsockname()
        watch.look()
    watch.look()
    assert watch.state == "warning" and f"{address}:{port}" in watch.text


def test_the_endpoint_may_be_talked_to_and_nobody_else() -> None:
    address = own_address()
    with socket.create_server((address, 0)) as listener, socket.create_connection(listener.getsockname()):
        port = listener.getsockname()[1]
        endpoint = Watch(endpoints=((address, port),))
        other = Watch(endpoints=(("127.0.0.1", 1),))
        endpoint.look()
        other.look()
    assert endpoint.state == "endpoint" and address in endpoint.text
    assert other.state == "warning" and f"{address}:{port}" in other.text


def test_where_the_sockets_cannot_be_read_the_badge_says_so() -> None:
    watch = Watch(trouble="no permission")
    assert watch.state == "unknown" and "cannot be checked" in watch.text and "no permission" in watch.detail
