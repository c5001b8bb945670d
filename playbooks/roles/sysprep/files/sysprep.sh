#!/bin/sh
# Removes what belongs to this machine and to this build: the next boot is a first one, and tells nothing of the build.
# usage: sysprep.sh BUILDER_USER PAYLOAD
# The builder user, its home and its sudo rule stay: the shutdown command needs them, and removes them.
set -eu

# Services that would write their state again when the machine goes down.
stop_writers() {
    [ -d /run/systemd/system ] || return 0
    systemctl stop kubelet.service containerd.service chrony.service systemd-random-seed.service \
        apt-daily.timer apt-daily-upgrade.timer 2>/dev/null || :
}

build_settings() {
    if mountpoint -q "$2" && [ -d /run/systemd/system ]; then umount "$2"; fi
    rm -f /etc/apt/apt.conf.d/00-build-image /var/lib/containerd/.placed-by-build /run/build-image-containerd.log
    # The name under which one containerd introduces itself, and its temporary mount points; the images stay.
    rm -rf /var/lib/containerd/io.containerd.grpc.v1.introspection /var/lib/containerd/tmpmounts
    # The build read a mirror that only it may reach: the bootstrap left here what the image shall use.
    final=/etc/build-image/apt.sources.final
    if [ -e "$final" ]; then
        find /etc/apt/sources.list /etc/apt/sources.list.d -type f ! -name kubernetes.sources -delete 2>/dev/null || :
        mv "$final" /etc/apt/sources.list.d/debian.sources
    fi
}

package_caches() {
    apt-get clean
    find /var/lib/apt/lists -mindepth 1 -delete
    rm -f /var/cache/apt/*.bin /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig/aux-cache
    rm -rf /var/cache/man/*
}

# https://systemd.io/BUILDING_IMAGES/
identity() {
    : >/etc/machine-id
    rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
    rm -f /etc/ssh/ssh_host_* /etc/udev/rules.d/70-persistent-net.rules
    rm -f /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid-
    echo localhost >/etc/hostname
    printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n' \
        >/etc/hosts
}

cloud_init() {
    rm -rf /var/lib/cloud/* /run/cloud-init
    rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init /etc/systemd/network/10-cloud-init-*
    rm -f /etc/ssh/sshd_config.d/50-cloud-init.conf
    # What an installer leaves to keep its own settings.
    rm -f /etc/cloud/cloud.cfg.d/99-installer.cfg /etc/cloud/cloud.cfg.d/subiquity-disable-cloudinit-networking.cfg
}

users() {
    rm -rf /root/.ssh /root/.ansible /root/.cache /root/.bash_history /root/.python_history /root/.viminfo /root/.lesshst \
        /root/.wget-hsts
    for home in /home/*; do
        [ -d "$home" ] || continue
        [ "$home" = "/home/$1" ] || rm -f "$home/.ssh/authorized_keys"
        rm -rf "$home/.ansible" "$home/.bash_history" "$home/.cache"
    done
}

state() {
    rm -f /var/lib/systemd/timers/stamp-* /var/lib/chrony/* /var/lib/dhcp/*.leases /var/lib/logrotate/status
    rm -rf /var/lib/systemd/coredump/* /var/crash/* /var/tmp/* /var/backups/*
    # But not what Ansible runs from at this moment; it removes that itself.
    find /tmp -mindepth 1 -maxdepth 1 ! -name 'ansible_*' -exec rm -rf {} +
}

logs() {
    # journald keeps its files open; this sends it back to /run, so that they can go.
    if [ -d /run/systemd/system ]; then journalctl --relinquish-var; fi
    rm -rf /var/log/journal/* /var/log/installer /var/log/apt/* /var/log/unattended-upgrades/* /var/log/pods/*
    find /var/log -type f \( -name '*.gz' -o -name '*.[0-9]' -o -name 'cloud-init*.log' \) -delete
    find /var/log -type f -exec truncate -s 0 {} +
}

main() {
    stop_writers
    build_settings "$@"
    package_caches
    identity
    cloud_init
    users "$1"
    state
    logs
    sync
}

main "$@" </dev/null # the script itself comes by standard input
