# A guest's own kernel: lay a writable root over the shared one, show the host's files, go on there.
modprobe -a overlay ipv6 $(echo "$lab_modules" | tr , ' ')
mount -t tmpfs tmpfs /.over
mkdir /.over/up /.over/work /.over/root
mount -t overlay overlay -o lowerdir=/,upperdir=/.over/up,workdir=/.over/work /.over/root
root=/.over/root
mount -t proc proc $root/proc
mount -t sysfs sys $root/sys
mount -t devtmpfs dev $root/dev
mkdir -p $root/dev/shm $root/dev/pts $root/dev/net
mount -t devpts devpts $root/dev/pts
mount -t tmpfs tmpfs $root/dev/shm
mount -t tmpfs tmpfs $root/run
mount -t tmpfs tmpfs $root/tmp
mount -t hostfs none $root/lab -o "$lab_dir"
mount -t hostfs none $root/host -o /
exec chroot $root /bin/sh /lab/boot
