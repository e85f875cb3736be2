"""The cluster's API and the plugins' own servers."""
