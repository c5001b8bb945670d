"""QEMU: builds on any Linux machine, with or without KVM."""
