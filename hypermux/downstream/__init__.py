"""From merged records to disk, and from disk to every reader."""
