"""k3s as a member: a Kubernetes cluster with a kubeconfig place, a load balancer and an ingress of its own."""
