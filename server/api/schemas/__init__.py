"""What requests may look like, one file per surface."""
