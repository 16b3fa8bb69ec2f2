"""The kernel's command line."""

from mayfly.protocol import words
from mayfly.vmm.arch import layout
from mayfly.vmm.config import CHANNEL_PORT, Channel, MachineConfig


def command_line(config: MachineConfig, token: str = "") -> str:
    """The machine's parameters, then the configuration's, which win. `token`: for TCP."""
    parameters = [layout.kernel_parameters(config), "panic=-1"]
    if config.interactive:
        parameters.append("console=ttyS0")
    else:
        # By default a tmpfs may fill half the memory, and a full one truncates files silently.
        # Freeing the archive would write to, and so copy, each page that is shared with its file.
        parameters += ["quiet", "console=ttynull", layout.EARLY_CONSOLE, "initramfs_options=size=90%", "retain_initrd"]
        # Otherwise the kernel starts a shell in the place of an init that does not start.
        parameters.append("init=/init")
    if config.channel is Channel.SERIAL:
        parameters.append(words.channel("serial", "/dev/ttyS1"))
    elif config.channel is Channel.VIRTIO:
        parameters.append(words.channel("virtio", words.PORT_NAME))
    elif config.channel is Channel.TCP:
        parameters += [words.channel("tcp", CHANNEL_PORT), words.token(token)]
    if config.network is not None:
        # No interrupt reports a sent packet, and guests do not wait for one to send the next.
        parameters.append("virtio_net.napi_tx=0")
        parameters += config.network.words
    return " ".join([*parameters, config.cmdline]).strip()
