#!/bin/sh
# mmdebstrap customize hook: all packages are installed. $1 = root tree, $2 = folder that holds customize/.
set -eu
root=$1

# What mmdebstrap was told for its own run (the host's proxy, for one) must not stay; 90-build-image takes its place.
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/etc/resolv.conf"
cp -R --no-preserve=ownership "$2/customize/." "$root/"
mkdir -p "$root/boot/efi" "$root/boot/grub"

# The bootstrap runs with INITRD=No, or packages would make the initramfs twice, the first time half configured.
if [ -x "$root/usr/sbin/update-initramfs" ] && ls "$root"/boot/vmlinuz-* >/dev/null 2>&1; then
    chroot "$root" update-initramfs -c -k all
    # The kernel's package makes this link, beside its vmlinuz, only where there is an initramfs when it is installed.
    for folder in "$root" "$root/boot"; do
        if [ -L "$folder/vmlinuz" ] && [ ! -L "$folder/initrd.img" ]; then
            ln -s "$(readlink "$folder/vmlinuz" | sed 's/vmlinuz-/initrd.img-/')" "$folder/initrd.img"
        fi
    done
fi

# Every machine gets its own identity at its first boot (machine-id(5): an empty file, not a missing one).
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root"/etc/ssh/ssh_host_*

# Nobody can log in with a password: there is no user, and root has none.
chroot "$root" usermod --password '*' root

has() { [ -x "$root/usr/bin/systemctl" ] && { [ -e "$root/lib/systemd/system/$1" ] || [ -e "$root/usr/lib/systemd/system/$1" ]; }; }
for unit in systemd-networkd.service systemd-networkd-wait-online.service systemd-resolved.service ssh.service; do
    if has "$unit"; then chroot "$root" systemctl --quiet enable "$unit"; fi
done
# Background work that makes a first boot slow, and that must not change a node behind its owner's back.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer; do
    if has "$unit"; then chroot "$root" systemctl --quiet disable "$unit"; fi
done
if has systemd-resolved.service; then
    ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
fi
