"""A Kubernetes cluster as a member: its own API carries out what the tree wants, and says what became of it."""
