"""Which networks are the public Internet, and which of them are not (IANA's registries of
special-purpose addresses).
"""

from ipaddress import ip_network

INTERNET = tuple(ip_network(text) for text in ("0.0.0.0/0", "2000::/3"))
"""But for the networks below."""
INTERNAL = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this host (RFC 1122)
        "10.0.0.0/8",  # private (RFC 1918)
        "100.64.0.0/10",  # carriers' own (RFC 6598)
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local (RFC 3927); cloud providers' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments (RFC 6890)
        "192.0.2.0/24",  # documentation (RFC 5737), as are the two below
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks (RFC 2544)
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the broadcast address
        # Outside of 2000::/3 are loopback, mapped IPv4, NAT64, link-local and multicast.
        "2001::/23",  # protocol assignments, Teredo (RFC 2928, RFC 4380)
        "2001:db8::/32",  # documentation (RFC 3849)
        "2002::/16",  # 6to4, which holds IPv4 addresses of any kind (RFC 3056)
        "3fff::/20",  # documentation (RFC 9637)
    )
)
"""No part of the public Internet; a guest or a callback reaches them only if they are named."""
