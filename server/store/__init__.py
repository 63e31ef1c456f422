"""What outlives the process: one SQLite file in the data directory, a repository for each subject."""
