"""The tunnel's pure core: frames, streams, lanes, credit and liveness with no socket and no clock."""
