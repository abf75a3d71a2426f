"""Learning rules, one file each. They know nothing of environments, files, loggers or processes."""
