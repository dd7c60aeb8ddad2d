"""The accounts file and its credentials, read into frozen settings; every error at once."""
