"""namefs: every libvirt guest's files under its human name, whatever they are called on disk."""

__version__ = "0.2.0"
