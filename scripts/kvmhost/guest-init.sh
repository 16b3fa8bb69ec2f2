#!/bin/busybox sh
# shellcheck shell=dash
# PID 1 of the emulated host that scripts/with-kvm starts: mounts this machine's files, makes /dev/kvm, runs /command, says its
# exit status, powers off. Runs twice: as /init of the initramfs, then (argument `stage2`) on the real root.
#
# Settings, from emulator.py: CACHE (of 9p), TOOLS (the folders that the tool disk's copies hide), OUTER_DATA (mayfly's outside),
# FOLDERS (of this machine; then the root is the second disk's, with these folders in it, and what is written beside them is not kept),
# ADDRESS (on QEMU's own network, if the host is to have one).
export PATH=/run/with-kvm:/usr/sbin:/usr/bin:/sbin:/bin

fail() {
    echo "with-kvm: inside the emulated host: $*" >/dev/console
    poweroff -f
}

port() { # the device of the virtio port named $1
    for name in /sys/class/virtio-ports/*/name; do
        [ "$(cat "$name")" = "$1" ] && name=${name%/name} && echo "/dev/${name##*/}" && return
    done
}

# Copy kernels and images that are newer outside: what was built there, at full speed, is used here from a local disk.
bring_data() {
    [ -d "$OUTER_DATA" ] || return 0
    cd "$OUTER_DATA" || return 0
    for file in kernel/"$(uname -m)"/* kernel/debian-*/* images/*/"$(uname -m)"/*; do
        inner=/run/state/data/mayfly/$file
        [ -f "$file" ] || continue
        [ -f "$inner" ] && [ ! "$file" -nt "$inner" ] && continue
        mkdir -p "${inner%/*}"
        cp -p "$file" "$inner.new" && mv "$inner.new" "$inner"
    done
    cd /
}

stage1() {
    /bin/busybox --install -s /bin
    mkdir -p /proc /sys /dev /root /run
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    mount -t devtmpfs dev /dev
    while read -r module options; do
        # shellcheck disable=SC2086 # options are words
        insmod "/modules/$module" $options || fail "cannot load $module"
    done </modules/order
    outer=/root
    if [ "$FOLDERS" ]; then
        mkdir -p /disk /changes /outer
        outer=/outer
        mount -t tmpfs changes /changes
        mkdir /changes/upper /changes/work
        mount -t ext4 -o ro,noatime /dev/vdb /disk || fail "cannot mount the root disk"
        mount -t overlay -o lowerdir=/disk,upperdir=/changes/upper,workdir=/changes/work root /root || fail "cannot make the root"
    fi
    mount -t 9p -o "trans=virtio,version=9p2000.L,access=any,msize=512000,cache=$CACHE" root $outer || fail "cannot mount this machine's files"
    for folder in $FOLDERS; do
        mkdir -p "/root/$folder"
        mount -o bind "$outer/$folder" "/root/$folder"
    done
    mount -t tmpfs -o mode=0755 run /root/run
    mkdir -p /root/run/with-kvm /root/run/state /root/run/tools
    cp /bin/busybox /init /settings /command /root/run/with-kvm/
    for applet in cat chmod cp env grep hostname ip ln mkdir mkfifo mount mv pidof readlink poweroff sed setsid sh sleep sync tee umount uname wc; do
        ln -s busybox "/root/run/with-kvm/$applet"
    done
    for folder in proc sys dev; do
        mkdir -p /root/$folder
        mount -o move /$folder /root/$folder
    done
    exec switch_root /root /run/with-kvm/sh /run/with-kvm/init stage2
}

stage2() {
    # shellcheck source=/dev/null
    . /run/with-kvm/settings
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
    mount -t tmpfs -o mode=1777,nosuid,nodev shm /dev/shm
    ln -s /proc/self/fd /dev/fd
    ln -s fd/0 /dev/stdin
    ln -s fd/1 /dev/stdout
    ln -s fd/2 /dev/stderr
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mkdir -p /run/user/0 /run/tmp
    chmod 700 /run/user/0
    chmod 1777 /run/tmp
    ip link set lo up
    if [ "$ADDRESS" ]; then
        # Without a default route: this machine's loopback can be reached, and nothing behind it.
        ip link set eth0 up
        ip addr add "$ADDRESS" dev eth0 || fail "no network"
    fi
    hostname with-kvm
    chmod 666 /dev/kvm || fail "no /dev/kvm"

    mount -t ext4 -o noatime /dev/vda /run/state || fail "cannot mount the state disk"
    if [ "$TOOLS" ]; then
        mount -t ext4 -o ro,noatime /dev/vdb /run/tools || fail "cannot mount the tool disk"
        number=0
        for folder in $TOOLS; do
            mount -o bind /run/tools/$number "$folder" || fail "cannot mount over $folder"
            number=$((number + 1))
        done
    fi

    bring_data

    # Programs get pipes, not the ports themselves: a port cannot be opened twice, and /dev/stdout must be.
    cd /run/with-kvm || fail "no /run"
    mkfifo in out err
    cat "$(port stdin)" >in &
    tee "$(port stdout)" <out | wc -c >out.count &
    out=$!
    tee "$(port stderr)" <err | wc -c >err.count &
    err=$!
    (while sleep 10; do echo; done) >"$(port alive)" &
    # In a session of its own, so that a signal to its process group stays with it.
    (cd / && exec setsid sh /run/with-kvm/command) <in >out 2>err
    status=$?
    # What the command left running would keep the pipes open; it ends with this machine anyway.
    spare=" 1 $(pidof tee wc) "
    for process in /proc/[0-9]*; do
        case $spare in
        *" ${process#/proc/} "*) ;;
        *) readlink "$process/exe" >/dev/null && kill -9 "${process#/proc/}" ;;
        esac
    done 2>/dev/null
    wait "$out" "$err"
    cd /
    sync
    umount /run/state || mount -o remount,ro /run/state
    echo "$status $(cat /run/with-kvm/out.count) $(cat /run/with-kvm/err.count)" >"$(port status)"
    # The other side has everything once the counts are reached, and then ends this machine.
    while :; do sleep 60; done
}

if [ "$1" = stage2 ]; then stage2; else
    # shellcheck source=/dev/null
    . /settings && stage1
fi
