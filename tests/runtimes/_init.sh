# First process of a node, in namespaces of its own (mount, network, pid, uts, ipc).
# $1: the only plugin directory.
set -eu
mount --make-rprivate /
for directory in /run /var/lib /etc/cni /etc/containers /usr/lib/cni; do
    mount -t tmpfs -o mode=0755 tmpfs "$directory"
done
mount --bind "$1" /usr/lib/cni
mkdir -p /run/lock /run/netns /etc/cni/net.d
mount --bind /run/netns /run/netns && mount --make-shared /run/netns # as `ip netns add` leaves it
# A node without control groups: runtimes would make theirs beside those of the machine.
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /sys/fs/cgroup
hostname node
ip link set lo up
echo ready
# Until the test that made the node closes it, or ends. Ignoring the signal has the kernel reap what daemons leave; dash
# cannot.
exec env --ignore-signal=CHLD cat
