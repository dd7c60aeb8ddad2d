"""What scripts/util is made of: case lists, the hosts of test containers, processes."""
