"""``namefs check``: what does not agree, what that means, and what to do about it."""
