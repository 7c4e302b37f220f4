"""What adapters are taught: continuations of the base, ratings of scorers and reward models, opinions of experts."""
