"""What runs leave behind: records and their parts, metrics, matches, and the choice among many runs."""
