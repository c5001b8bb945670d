"""From names to exact inputs: Kubernetes, container images, OS sources."""
