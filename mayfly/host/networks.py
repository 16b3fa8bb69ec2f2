"""Networks for runs: which tap interface and which addresses are free."""

import os
from ipaddress import ip_network

from mayfly.errors import BusyError, ConfigError, UnprocessableError
from mayfly.host.config import Config
from mayfly.vmm.config import MAX_MTU, NetworkBackend, NetworkConfig

MTU = {NetworkBackend.TAP: 1500, NetworkBackend.PASST: MAX_MTU}
"""passt has no segmentation offload, but no wire either, so its packets may be large."""
LOCAL_UNICAST_MAC = 0x02
"""First byte of an address that nobody assigned (IEEE 802, 8.4)."""


class Networks:
    """Gives each run that asks for a network one of its own.

    In each of the configured subnets the first address is the gateway's, and machine number n, from
    0 on, has the one n + 2 behind the subnet's own. With taps it has the nth tap too.

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
        self._room = min((subnet.num_addresses - 3 for subnet in self._subnets), default=0)
        if config.network_backend is NetworkBackend.TAP:
            self._room = min(self._room, len(config.network_taps))
        if self._room < 1:
            raise ConfigError("the network has no room for a machine", hint="set network_subnets, and network_taps for the back end tap")
        self._make(0)

    def lease(self) -> NetworkConfig:
        """A network for a machine, until `give_back`.

        Raises:
            UnprocessableError: the configuration has none.
            BusyError: all are taken.
        """
        self._check()
        number = next((number for number in range(self._room) if number not in self._taken), None)
        if number is None:
            raise BusyError(f"all {self._room} networks for runs are taken", hint="try again when a run has ended")
        self._taken[number] = self._make(number)
        return self._taken[number]

    def give_back(self, network: NetworkConfig) -> None:
        """The machine is gone."""
        self._taken = {number: taken for number, taken in self._taken.items() if taken is not network}

    def disconnected(self) -> NetworkConfig:
        """The device of all of them, connected to nothing.

        Raises:
            UnprocessableError: the configuration has none.
        """
        self._check()
        return self._make(0).disconnected()

    def _check(self) -> None:
        if self._config.network_backend is NetworkBackend.NONE:
            raise UnprocessableError("there is no network for runs here", hint="do without `network`, or set network_backend")

    def _make(self, number: int) -> NetworkConfig:
        config = self._config
        return NetworkConfig(
            backend=config.network_backend,
            tap=config.network_taps[number] if config.network_backend is NetworkBackend.TAP else "",
            mac=bytes([LOCAL_UNICAST_MAC, *os.urandom(5)]).hex(":"),
            addresses=tuple(f"{subnet[number + 2]}/{subnet.prefixlen}" for subnet in self._subnets),
            gateways=tuple(str(subnet[1]) for subnet in self._subnets),
            nameservers=config.network_nameservers,
            allow=config.network_allow,
            mtu=MTU[config.network_backend],
        )
