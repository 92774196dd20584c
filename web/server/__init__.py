"""What the page's tabs do, apart from how they look: one pipeline, limits, results, guards."""
