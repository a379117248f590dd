"""A real libvirt host in namespaces of its own, its guests, and a namefs mounted over it, for tests."""
