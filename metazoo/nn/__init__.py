"""Building blocks for networks and for algorithms that adapt them."""
