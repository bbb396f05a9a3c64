"""A cluster is given another parent while it works (`banyan move`): decided at the common ancestor, carried out by all on the way."""
