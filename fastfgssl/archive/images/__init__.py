"""Pictures: every other format decoded, checked, stripped of all but its pixels, and encoded."""
