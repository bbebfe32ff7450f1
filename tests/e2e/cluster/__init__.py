"""A real Kubernetes on one machine.

Two shapes share the binaries, the certificates and the process table:

* `ControlPlane`: etcd and kube-apiserver on loopback, ready in seconds, no root needed. It serves the tests that talk to
  the Kubernetes API and need no container.
* `Cluster`: two nodes, each a tree of Linux namespaces with kubelet, containerd and kube-proxy of its own, so that
  placement, draining and the loss of a node are real. It needs root.

Both are torn down completely, also by the next run after a SIGKILL. `python -m tests.e2e.cluster --help` does it by hand.
"""
