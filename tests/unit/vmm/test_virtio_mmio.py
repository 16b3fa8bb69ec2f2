"""The registers in every status (virtio 1.2, 4.2.2), the status steps, interrupts, and the device
that needs a reset.
"""

import itertools

import pytest

from mayfly.vmm.devices.virtio.device import ENTROPY, VirtioDevice, features_acceptable
from mayfly.vmm.devices.virtio.misuse import Misuse
from mayfly.vmm.devices.virtio.mmio import MAGIC, REGION_BYTES, VENDOR
from mayfly.vmm.devices.virtio.registers import (
    ACKNOWLEDGED,
    DRIVER,
    LIVE,
    NEGOTIATED,
    RESET,
    STEPS,
    WRITABLE_IN,
    DeviceStatus,
    Interrupt,
    Register,
)
from tests.kit.virtio_driver import ALL, PLAIN, RAM_BASE, Buffer, Driver, DriverQueue, Ram

STATES = [RESET, ACKNOWLEDGED, DRIVER, NEGOTIATED, LIVE, LIVE | DeviceStatus.FAILED, LIVE | DeviceStatus.DEVICE_NEEDS_RESET]
ONES = 0xFFFF_FFFF


class Echo(VirtioDevice):
    """Gives every chain back with a length of 0; its queues have different sizes, and it has a
    configuration.
    """

    device_type = ENTROPY
    features = 0b101
    queue_sizes = (4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.config = bytes(range(1, 11))
        self.notified: list[int] = []
        self.resets = 0

    def notify(self, index: int) -> None:
        self.notified.append(index)
        queue = self.queues[index]
        for _ in range(queue.size):
            if (chain := queue.pop()) is None:
                break
            queue.push(chain.head, 0)
        if queue.publish():
            self.host.interrupt_used()
        if queue.enable_notify():
            self.host.kick(index)

    def reset(self) -> None:
        super().reset()
        self.resets += 1


def bring_to(driver: Driver, status: DeviceStatus) -> None:
    """Bring the device into `status` the way a driver would."""
    if status == RESET:
        driver.write(Register.STATUS, 0)
    elif status == ACKNOWLEDGED:
        driver.step(DeviceStatus.ACKNOWLEDGE)
    elif status == DRIVER:
        driver.step(DeviceStatus.ACKNOWLEDGE, DeviceStatus.DRIVER)
    elif status == NEGOTIATED:
        driver.negotiate(ALL)
    else:
        driver.start()
        if status & DeviceStatus.FAILED:
            driver.step(DeviceStatus.FAILED)
        if status & DeviceStatus.DEVICE_NEEDS_RESET:
            driver.ram.put16(driver.queues[0].available + 2, 1000)
            driver.kick(0, always=True)
    driver.transport.misuse.clear()
    driver.pending.clear()
    assert driver.read(Register.STATUS) == status


def make_driver() -> Driver:
    return Driver(Echo(), Ram(1 << 14))


@pytest.fixture
def driver() -> Driver:
    return make_driver()


@pytest.fixture(params=STATES, ids=lambda status: status.name or "RESET")
def placed(request: pytest.FixtureRequest, driver: Driver) -> Driver:
    bring_to(driver, request.param)
    return driver


def test_identity_reads_the_same_in_every_status(placed: Driver) -> None:
    registers = (Register.MAGIC_VALUE, Register.VERSION, Register.DEVICE_ID, Register.VENDOR_ID)
    assert [placed.read(register) for register in registers] == [MAGIC, 2, ENTROPY, VENDOR]
    assert MAGIC.to_bytes(4, "little") == b"virt"


def test_features_come_in_halves_and_nothing_beyond(placed: Driver) -> None:
    halves = []
    for half in (0, 1, 2, ONES):
        placed.write(Register.DEVICE_FEATURES_SEL, half)
        halves.append(placed.read(Register.DEVICE_FEATURES))
    assert halves == [0b101 | 1 << 28 | 1 << 29, 1, 0, 0]


def test_queue_sizes_read_by_selector(placed: Driver) -> None:
    sizes = []
    for index in (0, 1, 2, ONES):
        placed.write(Register.QUEUE_SEL, index)
        sizes.append(placed.read(Register.QUEUE_NUM_MAX))
    assert sizes == [4, 8, 0, 0]


def test_shared_memory_regions_do_not_exist(placed: Driver) -> None:
    placed.write(Register.SHM_SEL, 0)
    for register in (Register.SHM_LEN_LOW, Register.SHM_LEN_HIGH, Register.SHM_BASE_LOW, Register.SHM_BASE_HIGH):
        assert placed.read(register) == ONES


def test_configuration_reads_in_any_size_and_is_not_written(placed: Driver) -> None:
    read = placed.transport.read
    assert read(Register.CONFIG, 1) == 1
    assert read(Register.CONFIG + 2, 2) == 0x0403
    assert read(Register.CONFIG + 4, 4) == 0x0807_0605
    assert read(Register.CONFIG + 8, 4) == 0x0A09
    assert read(REGION_BYTES - 4, 4) == 0
    placed.write(Register.CONFIG, ONES)
    assert read(Register.CONFIG, 4) == 0x0403_0201


@pytest.mark.parametrize("register", sorted(WRITABLE_IN))
def test_a_register_is_written_in_its_one_status_only(placed: Driver, register: int) -> None:
    placed.write(Register.QUEUE_SEL, 1)
    before = vars_of(placed)
    placed.write(register, 2)
    changed = vars_of(placed) != before
    allowed = WRITABLE_IN[register] == placed.read(Register.STATUS)
    refused_value = register == Register.QUEUE_READY  # 2 is neither ready nor not
    assert changed == (allowed and not refused_value)
    assert bool(placed.transport.misuse[Misuse.REGISTER]) == (not allowed or refused_value)


def vars_of(driver: Driver) -> object:
    """All that writes to registers set."""
    transport = driver.transport
    setup = transport._state.queues[1]
    return (transport._driver_features, setup.size, list(setup.addresses), transport._ready.get(1))


def test_every_offset_and_size_takes_reads_and_writes_in_every_status(placed: Driver) -> None:
    for offset, size, value in itertools.product(range(0x110), (1, 2, 4, 8), (0, 1, ONES)):
        if offset in (Register.STATUS, Register.QUEUE_READY) and size == 4:
            continue
        assert 0 <= placed.transport.read(offset, size) < 1 << 8 * size
        placed.transport.write(offset, size, value)
    assert set(placed.transport.misuse) <= {Misuse.REGISTER, Misuse.FEATURES, Misuse.QUEUE_SIZE, Misuse.NOTIFY}


@pytest.mark.parametrize("before", STATES, ids=lambda status: status.name or "RESET")
def test_status_goes_up_one_step_at_a_time(before: DeviceStatus) -> None:
    for value in (*range(256), 0x100, ONES):
        driver = make_driver()
        bring_to(driver, before)
        if before == DRIVER:
            driver.write(Register.DRIVER_FEATURES_SEL, 1)
            driver.write(Register.DRIVER_FEATURES, 1)
        driver.write(Register.STATUS, value)
        if value in (0, before, before | DeviceStatus.FAILED) or STEPS.get(before) == value:
            assert driver.read(Register.STATUS) == value
            assert not driver.transport.misuse
        else:
            assert driver.read(Register.STATUS) == before
            assert driver.transport.misuse == {Misuse.STATUS: 1}


@pytest.mark.parametrize(
    ("wanted", "accepted"), [(ALL, True), (PLAIN, True), (PLAIN | 0b101, True), (0, False), (ALL | 2, False), (ALL | 1 << 33, False)]
)
def test_features_ok_stays_only_for_what_was_offered(driver: Driver, wanted: int, accepted: bool) -> None:
    driver.negotiate(wanted)
    assert bool(driver.read(Register.STATUS) & DeviceStatus.FEATURES_OK) is accepted
    assert driver.transport.misuse == ({} if accepted else {Misuse.FEATURES: 1})
    assert features_acceptable(ALL | 0b101, wanted) is accepted


def test_features_of_a_number_beyond_63_are_refused(driver: Driver) -> None:
    bring_to(driver, DRIVER)
    driver.write(Register.DRIVER_FEATURES_SEL, 2)
    driver.write(Register.DRIVER_FEATURES, 0)
    driver.write(Register.DRIVER_FEATURES, 1)
    assert driver.transport.misuse == {Misuse.FEATURES: 1}


@pytest.mark.parametrize("size", [0, 3, 16, ONES])
def test_a_queue_size_that_is_no_power_of_2_or_too_great_is_ignored(driver: Driver, size: int) -> None:
    bring_to(driver, NEGOTIATED)
    driver.write(Register.QUEUE_SEL, 1)
    driver.write(Register.QUEUE_NUM, size)
    assert driver.transport._state.queues[1].size == 8
    assert driver.transport.misuse == {Misuse.QUEUE_SIZE: 1}


def test_a_ready_queue_does_not_change(driver: Driver) -> None:
    driver.negotiate(ALL)
    driver.set_up_queue(1, DriverQueue(driver.ram, 4, event_idx=True))
    assert driver.read(Register.QUEUE_READY) == 1
    before = vars_of(driver)
    driver.write(Register.QUEUE_NUM, 8)
    driver.write(Register.QUEUE_DESC_LOW, 0)
    assert vars_of(driver) == before
    driver.write(Register.QUEUE_READY, 0)
    assert driver.read(Register.QUEUE_READY) == 0
    driver.write(Register.QUEUE_NUM, 8)
    assert driver.transport._state.queues[1].size == 8


@pytest.mark.parametrize("address", [0, RAM_BASE + 8, 0xFFFF_FFFF_FFFF_FFF0])
def test_a_queue_at_an_impossible_address_is_not_ready(driver: Driver, address: int) -> None:
    driver.negotiate(ALL)
    queue = DriverQueue(driver.ram, 8, event_idx=True)
    queue.descriptors = address
    driver.set_up_queue(1, queue)
    assert driver.read(Register.QUEUE_READY) == 0
    assert driver.transport.misuse == {Misuse.QUEUE_ADDRESS: 1}
    driver.step(DeviceStatus.DRIVER_OK)
    driver.write(Register.QUEUE_NOTIFY, 1)
    driver.transport.notify(1)
    assert driver.transport.misuse[Misuse.NOTIFY] == 2


def test_selectors_of_all_ones_select_nothing(driver: Driver) -> None:
    bring_to(driver, NEGOTIATED)
    driver.write(Register.QUEUE_SEL, ONES)
    assert driver.read(Register.QUEUE_READY) == 0
    for register in (Register.QUEUE_NUM, Register.QUEUE_READY, Register.QUEUE_DESC_HIGH):
        driver.write(register, 1)
    assert driver.transport.misuse == {Misuse.REGISTER: 3}


@pytest.mark.parametrize("index", [2, 0xFFFF, ONES])
def test_a_kick_of_no_queue_is_counted(driver: Driver, index: int) -> None:
    driver.start()
    driver.write(Register.QUEUE_NOTIFY, index)
    assert driver.pending == []
    assert driver.transport.misuse == {Misuse.NOTIFY: 1}


def test_kicks_reach_the_device_only_when_it_is_live(placed: Driver) -> None:
    echo = placed.device
    assert isinstance(echo, Echo)
    echo.notified.clear()
    live = placed.read(Register.STATUS) == LIVE
    placed.write(Register.QUEUE_NOTIFY, 0)
    placed.transport.notify(0)
    assert placed.pending == ([0] if live else [])
    assert echo.notified == ([0] if live else [])
    assert placed.transport.misuse == ({} if live else {Misuse.NOTIFY: 2})


def test_chains_from_before_driver_ok_are_served(driver: Driver) -> None:
    driver.negotiate(ALL)
    queue = DriverQueue(driver.ram, 4, event_idx=True)
    driver.set_up_queue(0, queue)
    queue.offer([Buffer(b"early")])
    driver.step(DeviceStatus.DRIVER_OK)
    driver.run()
    assert len(queue.used()) == 1


@pytest.mark.parametrize("features", [ALL, PLAIN])
def test_interrupts_are_pending_until_acknowledged(driver: Driver, features: int) -> None:
    driver.start(features)
    driver.send(1, b"x")
    assert driver.interrupts == 1
    assert driver.read(Register.INTERRUPT_STATUS) == Interrupt.USED_BUFFER
    driver.write(Register.INTERRUPT_ACK, Interrupt.CONFIG_CHANGE)
    assert driver.read(Register.INTERRUPT_STATUS) == Interrupt.USED_BUFFER
    driver.write(Register.INTERRUPT_ACK, ONES)
    assert driver.read(Register.INTERRUPT_STATUS) == 0


def test_a_changed_configuration_has_a_new_generation_and_an_interrupt(placed: Driver) -> None:
    live = bool(placed.read(Register.STATUS) & DeviceStatus.DRIVER_OK)
    placed.acknowledge()
    before = placed.interrupts
    generation = placed.read(Register.CONFIG_GENERATION)
    placed.transport.config_changed()
    assert placed.read(Register.CONFIG_GENERATION) == generation + 1
    assert placed.interrupts - before == int(live)
    assert placed.read(Register.INTERRUPT_STATUS) == (Interrupt.CONFIG_CHANGE if live else 0)


def test_a_nonsense_ring_needs_a_reset_and_says_so_once(driver: Driver) -> None:
    driver.start()
    driver.ram.put16(driver.queues[0].available + 2, 5)
    driver.kick(0, always=True)
    assert driver.read(Register.STATUS) == LIVE | DeviceStatus.DEVICE_NEEDS_RESET
    assert driver.acknowledge() == Interrupt.CONFIG_CHANGE
    assert driver.interrupts == 1
    driver.send(1, b"ignored")
    driver.transport.notify(0)
    assert driver.queues[1].used() == []
    assert driver.interrupts == 1
    assert driver.transport.misuse[Misuse.AVAILABLE_INDEX] == 1


def test_a_reset_makes_it_work_again(placed: Driver) -> None:
    placed.start()
    placed.acknowledge()
    assert placed.read(Register.INTERRUPT_STATUS) == 0
    placed.send(0, b"x")
    assert len(placed.queues[0].used()) == 1


def test_a_reset_clears_every_register(driver: Driver) -> None:
    driver.start()
    driver.send(1, b"x")
    driver.write(Register.STATUS, 0)
    assert driver.device.queues == {}
    assert driver.read(Register.STATUS) == 0
    assert driver.read(Register.INTERRUPT_STATUS) == 0
    assert driver.read(Register.QUEUE_READY) == 0
    driver.write(Register.QUEUE_SEL, 1)
    assert driver.read(Register.QUEUE_READY) == 0
    assert driver.read(Register.QUEUE_NUM_MAX) == 8


def test_a_closed_transport_lets_go_of_guest_memory(driver: Driver) -> None:
    driver.start()
    driver.send(0, b"x")
    with pytest.raises(BufferError):
        driver.ram.bytes.append(0)
    driver.transport.close()
    driver.ram.memory.release()
    driver.ram.bytes.append(0)


def test_the_chain_under_way_is_given_back_when_a_later_head_is_nonsense(driver: Driver) -> None:
    driver.start()
    queue = driver.queues[0]
    queue.offer([Buffer(b"x")])
    queue.write_available(4)
    driver.kick(0)
    assert driver.read(Register.STATUS) & DeviceStatus.DEVICE_NEEDS_RESET
    assert len(queue.used()) == 1
