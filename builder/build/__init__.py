"""Run folders, Packer, the Ansible wrapper, base bootstrap, disks."""
