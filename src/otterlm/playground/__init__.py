"""The playground is a local page: it shows the original and guided responses side by side, and what an adapter says of
every token."""
