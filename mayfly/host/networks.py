"""Networks for runs: which tap interface and which addresses are free."""

import os
from ipaddress import ip_interface, ip_network

from mayfly.errors import BusyError, ConfigError, UnprocessableError
from mayfly.host import own_addresses
from mayfly.host.config import Config
from mayfly.schema import replace
from mayfly.vmm.config import MAX_MTU, NetworkBackend, NetworkConfig

MTU = {NetworkBackend.TAP: 1500, NetworkBackend.PASST: MAX_MTU}
"""passt has no segmentation offload, but no wire either, so its packets may be large."""
LOCAL_UNICAST_MAC = 0x02
"""First byte of an address that nobody assigned (IEEE 802, 8.4)."""


class Networks:
    """Gives each run that asks for a network one of its own.

    In each of the configured subnets the first address is the gateway's, and machines have those
    from the place `network_first` on. With taps each has one of those too.

    Raises:
        ConfigError: the configuration makes no network.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._taken: dict[int, NetworkConfig] = {}
        if config.network_backend is NetworkBackend.NONE:
            return
        try:
            self._subnets = [ip_network(text) for text in config.network_subnets]
        except ValueError as error:
            raise ConfigError(f"network_subnets: {error}", hint="write a subnet as 10.87.0.0/16") from error
        self._end = min((subnet.num_addresses - 1 for subnet in self._subnets), default=0)
        self._room = self._end - config.network_first
        if config.network_backend is NetworkBackend.TAP:
            self._room = min(self._room, len(config.network_taps))
        if self._room < 1:
            raise ConfigError("the network has no room for a machine", hint="set network_subnets, and network_taps for the back end tap")
        self._make(config.network_first)

    def lease(self) -> NetworkConfig:
        """A network for a machine, until `give_back`. It does not lead to this host.

        Raises:
            UnprocessableError: the configuration has none.
            BusyError: all are taken.
            NetworkError: this host does not tell its addresses.
        """
        self._check()
        self._check_room()
        first = self._config.network_first
        place = next(place for place in range(first, self._end) if place not in self._taken)
        return self._take(place, self._make(place))

    def lease_again(self, mac: str, addresses: tuple[str, ...], gateways: tuple[str, ...]) -> NetworkConfig:
        """The network of a machine that comes from another server, with the MAC and the addresses
        that it has.

        Raises:
            UnprocessableError: the configuration has none, or not these addresses.
            BusyError: they are taken here, or all networks are.
            NetworkError: this host does not tell its addresses.
        """
        self._check()
        asked = ", ".join(addresses)[:200]
        try:
            place = int(ip_interface(addresses[0]).ip) - int(self._subnets[0].network_address)
        except (ValueError, IndexError):
            place = 0
        if not 2 <= place < self._end or (addresses, gateways) != (self._addresses(place), self._gateways):
            raise UnprocessableError(f"machines here have no address {asked} behind {', '.join(gateways)}", hint="see network_subnets")
        if place in self._taken:
            raise BusyError(f"another machine here has the address {asked}", hint="try again when its run has ended")
        self._check_room()
        return self._take(place, self._make(place, mac))

    def _take(self, place: int, network: NetworkConfig) -> NetworkConfig:
        self._taken[place] = replace(network, deny=tuple(sorted(own_addresses.addresses())))
        return self._taken[place]

    def give_back(self, network: NetworkConfig) -> None:
        """The machine is gone."""
        self._taken = {place: taken for place, taken in self._taken.items() if taken is not network}

    def disconnected(self) -> NetworkConfig:
        """The device of all of them, connected to nothing.

        Raises:
            UnprocessableError: the configuration has none.
        """
        self._check()
        taps = self._config.network_taps
        return self._make(self._config.network_first, tap=taps[0] if taps else "").disconnected()

    def _check(self) -> None:
        if self._config.network_backend is NetworkBackend.NONE:
            raise UnprocessableError("there is no network for runs here", hint="do without `network`, or set network_backend")

    def _check_room(self) -> None:
        if len(self._taken) >= self._room:
            raise BusyError(f"all {self._room} networks for runs are taken", hint="try again when a run has ended")

    @property
    def _gateways(self) -> tuple[str, ...]:
        return tuple(str(subnet[1]) for subnet in self._subnets)

    def _addresses(self, place: int) -> tuple[str, ...]:
        return tuple(f"{subnet[place]}/{subnet.prefixlen}" for subnet in self._subnets)

    def _free_tap(self) -> str:
        used = {network.tap for network in self._taken.values()}
        return next((tap for tap in self._config.network_taps if tap not in used), "")

    def _make(self, place: int, mac: str = "", tap: str = "") -> NetworkConfig:
        config = self._config
        return NetworkConfig(
            backend=config.network_backend,
            tap=(tap or self._free_tap()) if config.network_backend is NetworkBackend.TAP else "",
            mac=mac or bytes([LOCAL_UNICAST_MAC, *os.urandom(5)]).hex(":"),
            addresses=self._addresses(place),
            gateways=self._gateways,
            nameservers=config.network_nameservers,
            allow=config.network_allow,
            budget=config.network_bytes,
            rate=config.network_rate,
            packets=config.network_packets,
            mtu=MTU[config.network_backend],
        )
