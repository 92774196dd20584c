"""Which tokens matter and which belong together: attention, saliency, groups, when to look (DESIGN 2.4, 2.5)."""
