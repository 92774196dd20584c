"""Which tokens matter and which belong together: attention, saliency, groups, when to look (docs/semantics.md)."""
