#!/bin/sh
# Boots this machine's own systemd as PID 1 of new namespaces, over an overlay of / that lives in memory.
#
#   unshare --mount systemd_boot.sh DIR CONSOLE PATH...
#
# Run by systemd_box.py, which says what it needs. DIR is shared with the box under its own name, read-write; every PATH
# (the checkout's, the interpreter's) that is on another file system than / is shared read-only. CONSOLE is a terminal.
# DIR/pid is the PID of the box's PID 1, written when it is about to become systemd. A reboot inside boots it again, over
# the same overlay.
# It ends when PID 1 is killed or powered off, and leaves nothing outside DIR. On SIGTERM, which it gets when whoever
# started it is killed, it ends the box itself and removes DIR too.
set -eu

PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
script=$0

units=usr/lib/systemd/system
generators=usr/lib/systemd/system-generators

mask() { ln -sf /dev/null "$1"; }

# A systemd with the journal, multi-user.target, and nothing of what this machine has enabled or of our own on it.
minimal() {
    root=$1
    rm -rf "$root/var/lib/gpufleet-vllm"
    rm -rf "$root/etc/systemd/system" "$root/etc/systemd/system-generators"
    mkdir -p "$root/etc/systemd/system" "$root/etc/systemd/system-generators" "$root/etc/systemd/journald.conf.d"
    ln -s "/$units/multi-user.target" "$root/etc/systemd/system/default.target"
    for path in "$root/$generators"/*; do
        mask "$root/etc/systemd/system-generators/${path##*/}"
    done
    for path in "$root/$units"/*.target.wants/*; do
        name=${path##*/}
        case $name in
            systemd-journald.s* | systemd-journald-dev-log.socket | *.target) ;;
            *) mask "$root/etc/systemd/system/$name" ;;
        esac
    done
    # An empty one would make this a first boot, which enables what the distribution presets.
    od -An -N16 -tx1 /dev/urandom | tr -d ' ' >"$root/etc/machine-id"
    echo gpufleet-box >"$root/etc/hostname"
    printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' >"$root/etc/systemd/journald.conf.d/lab.conf"
}

share() { # ROOT PATH OPTIONS
    mkdir -p "$1$2"
    mount --bind "$2" "$1$2"
    mount -o "remount,bind,$3" "$1$2"
}

outer() {
    dir=$1 console=$2
    shift 2
    mount --make-rprivate /
    mkdir -p "$dir/fs"
    mount -t tmpfs -o mode=0755 tmpfs "$dir/fs"
    root=$dir/fs/root
    mkdir "$dir/fs/upper" "$dir/fs/work" "$dir/fs/cgroup" "$root"
    mount -t overlay -o "lowerdir=/,upperdir=$dir/fs/upper,workdir=$dir/fs/work" overlay "$root"
    : >"$dir/shared"
    for path in "$@"; do
        [ -e "$root$path" ] || share "$root" "$path" ro
        printf '%s\n' "$path" >>"$dir/shared"
    done
    minimal "$root"

    # Below our own group, so that the box is accounted to whoever runs it, under a systemd of the machine's too.
    mount -t cgroup2 cgroup2 "$dir/fs/cgroup"
    group=$dir/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/gpufleet-${dir##*/}
    mkdir "$group"
    abandoned=
    trap 'abandoned=yes; kill -KILL "$(cat "$dir/pid" || echo "$child")"' TERM
    status=129
    # The kernel ends a namespace's PID 1 with SIGHUP for a reboot, and with SIGINT for a poweroff.
    while [ "$status" -eq 129 ]; do
        rm -f "$dir/pid"
        status=0
        env -i PATH="$PATH" container=gpufleet-lab \
            setpriv --pdeathsig KILL \
            unshare --fork --kill-child=KILL --pid --mount --uts --ipc --net \
            sh "$script" --inner "$dir" "$group" "$console" &
        child=$!
        wait "$child" || status=$?
    done
    [ -z "$abandoned" ] || wait "$child" || :
    find "$group" -depth -type d -exec rmdir {} +
    if [ -n "$abandoned" ]; then
        umount -l "$dir/fs"
        rm -rf --one-file-system "$dir"
    fi
}

inner() {
    dir=$1
    root=$dir/fs/root
    # /proc is still the machine's, so this is the number that the machine knows us by.
    read -r pid _ </proc/self/stat
    echo 0 >"$2/cgroup.procs"
    exec unshare --cgroup sh "$script" --innermost "$dir" "$root" "$pid" "$3"
}

innermost() {
    dir=$1 root=$2 pid=$3 console=$4
    mount -t proc proc "$root/proc"
    # Kernel settings are the machine's, not the box's.
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    devices "$root/dev" "$console"
    mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs "$root/run"
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"
    # What is shared may lie below one of these two.
    while IFS= read -r path; do
        [ -e "$root$path" ] || share "$root" "$path" ro
    done <"$dir/shared"
    # Debian mounts /run noexec, and a test's engine is in DIR.
    share "$root" "$dir" rw,exec
    ip link set lo up
    cd "$root"
    mkdir run/machine
    pivot_root . run/machine
    # From here on the machine is out of reach.
    umount -l run/machine
    rmdir run/machine
    echo "$pid" >"$dir/pid.new"
    mv "$dir/pid.new" "$dir/pid"
    exec chroot . /lib/systemd/systemd --log-target=console --show-status=no
}

devices() {
    mount -t tmpfs -o mode=0755,nosuid tmpfs "$1"
    for name in null zero full random urandom tty; do
        : >"$1/$name"
        mount --bind "/dev/$name" "$1/$name"
    done
    : >"$1/console"
    mount --bind "$2" "$1/console"
    mkdir "$1/pts" "$1/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$1/pts"
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$1/shm"
    ln -s pts/ptmx "$1/ptmx"
    ln -s /proc/self/fd "$1/fd"
    ln -s fd/0 "$1/stdin"
    ln -s fd/1 "$1/stdout"
    ln -s fd/2 "$1/stderr"
}

case $1 in
    --inner | --innermost)
        step=${1#--}
        shift
        "$step" "$@"
        ;;
    *) outer "$@" ;;
esac
