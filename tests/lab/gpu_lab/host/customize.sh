#!/bin/sh
# What makes a Debian root file system an emulated host: sshd for root and ops, no package source but the one that a lab
# gives it, and no units that a container cannot use.
#
#   customize.sh ROOT INIT
set -eu

root=$1 init=$2

install -m 0755 "$init" "$root/usr/local/sbin/gpulab-init"

chroot "$root" useradd --create-home --shell /bin/bash ops
# A locked password makes sshd refuse the account; this one matches nothing.
chroot "$root" usermod --password '*' ops
chroot "$root" usermod --password '*' root
echo 'ops ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/ops"
chmod 0440 "$root/etc/sudoers.d/ops"
for home in root home/ops; do
    install -d -m 0700 "$root/$home/.ssh"
done
chroot "$root" chown ops:ops /home/ops/.ssh

cat >"$root/etc/ssh/sshd_config.d/lab.conf" <<'CONF'
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
PermitRootLogin prohibit-password
UseDNS no
UsePAM no
MaxStartups 100
MaxSessions 100
CONF
rm -f "$root"/etc/ssh/ssh_host_*

rm -f "$root/etc/apt/sources.list.d"/* "$root/etc/apt/sources.list"

mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n' >"$root/etc/systemd/journald.conf.d/lab.conf"
mkdir -p "$root/etc/systemd/system"
for unit in apt-daily.timer apt-daily-upgrade.timer console-getty.service dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer getty.target getty-static.service systemd-logind.service \
    systemd-firstboot.service systemd-update-utmp.service systemd-udevd.service systemd-udev-trigger.service \
    systemd-modules-load.service systemd-timesyncd.service systemd-networkd.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount \
    dev-hugepages.mount dev-mqueue.mount; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
# Each host makes its own at its first boot.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/etc/hostname" "$root/etc/resolv.conf"
rm -rf "$root"/var/log/*.log "$root"/var/log/apt
