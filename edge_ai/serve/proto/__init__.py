"""The Open Inference Protocol's gRPC messages, generated from open_inference.proto (the command stands at its top)."""
