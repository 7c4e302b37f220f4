"""Makes what adapters learn: the base's continuations, scorers' and reward models' ratings, experts' opinions."""
