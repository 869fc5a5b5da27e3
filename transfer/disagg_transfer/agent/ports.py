"""Listening sockets that serve IPv4 and IPv6 alike, so that port 0 means one port."""

import socket


def listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
