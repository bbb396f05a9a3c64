"""`banyan.shim.v1` over gRPC: a shim in a process of its own, spoken to as if it were here. Loaded only where one is used."""
