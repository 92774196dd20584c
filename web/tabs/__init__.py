"""The tabs of the page: what they show, and what they call."""
