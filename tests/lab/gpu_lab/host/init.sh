#!/bin/sh
# PID 1 of an emulated host, until it is systemd. The engine mounts these read-only, and gives no propagation.
mount -o remount,rw /sys
mount -o remount,rw /sys/fs/cgroup
mount --make-rshared /
exec /sbin/init
