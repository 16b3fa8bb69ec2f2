#!/bin/busybox sh
# shellcheck shell=dash
# PID 1 of an emulated Intel host: loads the modules and runs /command; all that is printed goes to
# the serial port. Lines that begin with == are for host.py.
if [ "$1" != again ]; then
    # Away from the initramfs, which no process can leave by pivot_root: passt's sandbox does.
    /bin/busybox mount -t tmpfs -o mode=755,size=90% root /mnt
    for entry in /*; do
        case $entry in
        /mnt | /proc | /sys) ;;
        *) /bin/busybox cp -a "$entry" /mnt/ ;;
        esac
    done
    /bin/busybox mkdir -p /mnt/mnt /mnt/proc /mnt/sys
    exec /bin/busybox switch_root /mnt /init again
fi
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root PYTHONPATH=/project:/site PYTHONDONTWRITEBYTECODE=1
export XDG_RUNTIME_DIR=/run/user/0 XDG_DATA_HOME=/data
mkdir -p "$XDG_RUNTIME_DIR"
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/net
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec >/dev/console 2>&1 </dev/null
while read -r module options; do
    [ "$module" = kvm_intel ] && options=$(sed -n 's/.*mayfly_kvm_intel=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
    # shellcheck disable=SC2086 # several options
    insmod "/modules/$module" $options || echo "== cannot load $module"
done </modules/order
ip link set lo up
hostname intel
ln -s /proc/self/fd /dev/fd
echo "== processor: $(sed -n 's/^model name.*: //p' /proc/cpuinfo)"
echo "== flags:$(sed -n 's/^vmx flags.*://p' /proc/cpuinfo)"
echo "== parameters: $(for file in /sys/module/kvm_intel/parameters/*; do echo "${file##*/}=$(cat "$file")"; done | tr '\n' ' ')"
cd /project || exit
sh /command
echo "== status: $?"
dmesg | grep -E 'BUG|WARN|Oops|Call Trace|soft lockup' | tail -n 20
echo "== end"
poweroff -f
