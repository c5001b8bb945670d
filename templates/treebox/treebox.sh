#!/bin/sh
# A root tree that Packer can log in to: an overlay in namespaces of its own, with an sshd on 127.0.0.1.
# usage: treebox.sh LOWERS FOLDER PORT PUBLIC_KEY [PAYLOAD|""] [CONTAINERD|""]
#   LOWERS      folders joined with ":", the topmost first; never written
#   FOLDER      holds upper, work (overlayfs) and merged
#   PAYLOAD     folder shown read-only at /run/build-image/payload
#   CONTAINERD  real folder shown at /var/lib/containerd; made when it is not there
# Runs until it is killed. The caller has put it into new mount, pid, uts and ipc namespaces: they, and every mount
# and process below, go when it goes.
set -eu
lowers=$1 folder=$2 port=$3 key=$4 payload=${5-} containerd=${6-}
merged=$folder/merged

device_nodes() {
    mount -t tmpfs -o mode=755,size=64k tmpfs "$merged/dev"
    for name in null zero full random urandom tty; do
        : >"$merged/dev/$name"
        mount --bind "/dev/$name" "$merged/dev/$name"
    done
    mkdir "$merged/dev/pts" "$merged/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$merged/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$merged/dev/shm"
    ln -s pts/ptmx "$merged/dev/ptmx"
    ln -s /proc/self/fd "$merged/dev/fd"
    ln -s /proc/self/fd/0 "$merged/dev/stdin"
    ln -s /proc/self/fd/1 "$merged/dev/stdout"
    ln -s /proc/self/fd/2 "$merged/dev/stderr"
}

# Shows a file in place of one of the tree; one that was not there stays as an empty file, which the caller removes.
show_file() {
    if [ ! -e "$2" ]; then
        mkdir -p "${2%/*}"
        : >"$2"
    fi
    mount --bind "$1" "$2"
}

# The network is the host's, so are its name servers. In the tree their file is often a link into /run.
name_servers() {
    cp /etc/resolv.conf "$merged/run/build-image/resolv.conf"
    show_file "$merged/run/build-image/resolv.conf" "$merged$(chroot "$merged" realpath -m /etc/resolv.conf)"
}

# Exit code 101 tells maintainer scripts that a service must not be started.
# https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt
no_services() {
    printf '#!/bin/sh\nexit 101\n' >"$merged/run/build-image/policy-rc.d"
    chmod 755 "$merged/run/build-image/policy-rc.d"
    show_file "$merged/run/build-image/policy-rc.d" "$merged/usr/sbin/policy-rc.d"
}

read_only_bind() {
    mkdir -p "$2"
    mount --bind "$1" "$2"
    mount -o remount,bind,ro "$2"
}

mkdir -p "$folder/upper" "$folder/work" "$merged"
if [ -n "$containerd" ] && [ ! -d "$containerd" ]; then mkdir -m 0711 "$containerd"; fi
mount -t overlay -o "lowerdir=$lowers,upperdir=$folder/upper,workdir=$folder/work" overlay "$merged"
mount -t proc proc "$merged/proc"
read_only_bind "$merged/proc/sys" "$merged/proc/sys" # the kernel is the host's: nothing in the tree may tune it
mount -t sysfs -o ro sysfs "$merged/sys"
mount -t tmpfs -o mode=755 tmpfs "$merged/run"
mount -t tmpfs -o mode=1777 tmpfs "$merged/tmp"
mkdir -p "$merged/run/build-image" "$merged/run/sshd" "$merged/run/lock"
device_nodes
name_servers
no_services
if [ -n "$payload" ]; then read_only_bind "$payload" "$merged/run/build-image/payload"; fi
if [ -n "$containerd" ]; then
    mkdir -p "$merged/var/lib/containerd"
    mount --bind "$containerd" "$merged/var/lib/containerd"
fi
hostname localhost
install -m 600 "$key" "$merged/run/build-image/authorized_keys"
ssh-keygen -q -t ed25519 -N '' -C build -f "$merged/run/build-image/hostkey"

# SYSTEMD_OFFLINE lets systemctl enable units although no systemd runs here.
# https://github.com/systemd/systemd/blob/main/docs/ENVIRONMENT.md
exec chroot "$merged" /usr/sbin/sshd -D -e -f /dev/null -p "$port" -h /run/build-image/hostkey \
    -o ListenAddress=127.0.0.1 -o PidFile=none -o AuthorizedKeysFile=/run/build-image/authorized_keys \
    -o StrictModes=no -o UsePAM=no -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \
    -o PermitRootLogin=prohibit-password -o UseDNS=no -o SetEnv=SYSTEMD_OFFLINE=1 \
    -o 'Subsystem=sftp internal-sftp'
