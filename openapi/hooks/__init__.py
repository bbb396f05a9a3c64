"""What single kinds need beyond being stored: histories of Applications, decisions about Clusters, credentials shown once."""
