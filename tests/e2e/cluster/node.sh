#!/bin/sh
# A node's first process, in mount, pid, uts and ipc namespaces of its own and in its network namespace.
# Usage: node.sh NAME DIRECTORY KUBELET KUBE_PROXY. Everything below it ends when it is killed.
set -eu
name=$1 directory=$2 kubelet=$3 kube_proxy=$4

hostname "$name"
mount --make-rshared /
mount -t tmpfs -o mode=0755 tmpfs /run
# The node's own /var: containerd, kubelet and CNI keep their state at fixed places below it.
mkdir -p "$directory/var/lib/kubelet" "$directory/var/log" "$directory/var/tmp" "$directory/logs"
[ -L "$directory/var/run" ] || ln -s /run "$directory/var/run"
mount --bind "$directory/var" /var
mount --make-rshared /var

# A daemon that dies comes back after a second, as it would under an init system.
keep() {
    log=$directory/logs/$1.log
    shift
    while :; do
        "$@" >>"$log" 2>&1 || echo "ended with status $?" >>"$log"
        sleep 1
    done
}

keep containerd containerd --config "$directory/containerd.toml" &
while [ ! -S "$directory/containerd.sock" ]; do sleep 0.05; done
# The harness imports the images that the first pods need, and then says so.
while [ ! -e "$directory/images-imported" ]; do sleep 0.05; done
keep kubelet "$kubelet" --config "$directory/kubelet.json" --kubeconfig "$directory/kubelet.kubeconfig" \
    --hostname-override "$name" --node-ip "$5" --v 2 &
keep kube-proxy "$kube_proxy" --config "$directory/kube-proxy.json" --v 1 &
# As the first process of its pid namespace it also reaps what containers leave behind.
wait
