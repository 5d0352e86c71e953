"""What became of every input, as a page that opens anywhere: counts, charts and contact sheets."""
