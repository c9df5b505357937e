"""AdaBN: each site normalised by its own statistics."""
