"""Each file makes the page of `otter score --html` for one kind of adapter."""
