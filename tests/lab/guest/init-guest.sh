# A guest's own kernel: lay a writable root over the shared one, show the host's files, go on there.
modprobe -a overlay ipv6 $(echo "$lab_modules" | tr , ' ')
if [ -n "$lab_disk" ]; then
    # What is written outlives a reboot. The host's crash would lose it, and the run with it.
    mount -t ext4 -o barrier=0 "$lab_disk" /.over
else
    mount -t tmpfs tmpfs /.over
fi
mkdir -p /.over/up /.over/work /.over/root
mount -t overlay overlay -o lowerdir=/,upperdir=/.over/up,workdir=/.over/work /.over/root
root=/.over/root
mount -t proc proc $root/proc
mount -t sysfs sys $root/sys
mount -t devtmpfs dev $root/dev
mkdir -p $root/dev/shm $root/dev/pts $root/dev/net $root/.old
mount -t devpts devpts $root/dev/pts
mount -t tmpfs tmpfs $root/dev/shm
mount -t tmpfs tmpfs $root/run
mount -t tmpfs tmpfs $root/tmp
mount -t hostfs none $root/lab -o "$lab_dir"
mount -t hostfs none $root/host -o /
if [ -n "$lab_disk" ]; then
    # systemd wants the root to be the root.
    cd $root
    pivot_root . .old
    exec chroot . /bin/sh /lab/boot
fi
exec chroot $root /bin/sh /lab/boot
