"""The view as a plain tree of symlinks, for hosts and tools without FUSE."""
