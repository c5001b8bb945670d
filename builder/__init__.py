"""build-image: Kubernetes node images from a matrix of OS, Kubernetes version and infrastructure."""

__version__ = "0.1.0"
