"""Watches whether this process talks to another machine, for the badge on the chat's page.

At intervals it asks the operating system for all network sockets of the process; the other end of each must be on the
loopback interface, or be the endpoint that the user chose. A peer that was seen once stays listed until the end.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from threading import Thread
from typing import Literal

import psutil

INTERVAL_S = 2.0
DNS_PORT = 53

State = Literal["private", "endpoint", "warning", "unknown"]


@dataclass(kw_only=True)
class Watch:
    """The peers of this process that have been seen."""

    endpoints: tuple[tuple[str, int], ...] = ()
    """Hosts and ports that questions go to; none if the model runs here."""
    peers: list[str] = field(default_factory=list)
    """Other peers, in the order in which they were first seen."""
    trouble: str = ""
    """Why the sockets cannot be read; empty if they can."""
    _addresses: set[tuple[str, int]] = field(default_factory=set)
    """The addresses that the endpoints' names resolve to."""

    @property
    def state(self) -> State:
        if self.peers:
            return "warning"
        if self.trouble:
            return "unknown"
        return "endpoint" if self.endpoints else "private"

    @property
    def text(self) -> str:
        """The text of the badge."""
        texts: dict[State, str] = {
            "private": "No connection has left this machine",
            "endpoint": f"Questions go to {' and '.join(host for host, _ in self.endpoints)} and nowhere else",
            "warning": f"Connected to {', '.join(self.peers[:3])}",
            "unknown": "Connections cannot be checked on this system",
        }
        return texts[self.state]

    @property
    def detail(self) -> str:
        """What that text is based on."""
        if self.trouble:
            return f"The system does not let this process read its own sockets: {self.trouble}"
        if self.peers:
            return f"This process had connections beyond this machine: {', '.join(self.peers)}"
        return f"The sockets of this process are read every {INTERVAL_S:g} s"

    def look(self) -> None:
        """Read the sockets of this process once."""
        try:
            connections = psutil.Process(os.getpid()).net_connections(kind="inet")
        except (psutil.Error, OSError) as error:
            self.trouble = str(error) or type(error).__name__
            return
        self.trouble = ""
        found = remote_peers(
            (connection.raddr[0], connection.raddr[1]) for connection in connections if connection.raddr
        )
        for address, port in found:
            name = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            if name not in self.peers and not self._belongs_to_endpoint(address, port):
                self.peers.append(name)

    def _belongs_to_endpoint(self, address: str, port: int) -> bool:
        """Whether a peer is an endpoint, whose address may have changed, or the name server that is asked for it."""
        if (address, port) not in self._addresses and port in (port for _, port in self.endpoints):
            self._addresses.update((found, port) for host, port in self.endpoints for found in addresses_of(host, port))
        return (address, port) in self._addresses or (bool(self.endpoints) and port == DNS_PORT)

    def start(self) -> None:
        """Look now and then at intervals, in a thread that ends with the process."""
        self.look()

        def keep_looking() -> None:
            while True:
                time.sleep(INTERVAL_S)
                self.look()

        Thread(target=keep_looking, daemon=True).start()


def addresses_of(host: str, port: int) -> frozenset[str]:
    """Resolve a name to its addresses; none if it cannot be resolved now."""
    try:
        return frozenset(_plain(str(found[4][0])) for found in socket.getaddrinfo(host, port))
    except OSError:
        return frozenset()


def remote_peers(peers: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return those addresses and ports that are on another machine."""
    return [(_plain(address), port) for address, port in peers if not ip_address(_plain(address)).is_loopback]


def _plain(address: str) -> str:
    """Return an address without its zone, and IPv4 inside IPv6 as IPv4: `::ffff:127.0.0.1` is the loopback too."""
    address = address.partition("%")[0]
    inner = IPv6Address(address).ipv4_mapped if ":" in address else None
    return str(inner) if inner else address
