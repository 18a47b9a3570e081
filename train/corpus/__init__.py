"""Stories -> speech -> units -> shards, and the readers of what users bring."""
