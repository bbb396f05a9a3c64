"""The front: the port of the API. See `server.Front`."""
